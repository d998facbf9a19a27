"""L_CLIP as the trainer puts it together, against transformers' CLIP and a plain loop over strings."""

from types import SimpleNamespace

import datasets
import pytest
import torch
from plain_contrastive import masked_by_loops
from pretend_gpu import META
from transformers import CLIPModel, CLIPProcessor

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.data.scores import CandidateScores
from sdsclip_hf.training import contrastive
from sdsclip_hf.training.contrastive import ContrastiveTerm
from sdsclip_hf.training.terms import Pairs

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = (0, 1, 2, 0, 4, 5)


@pytest.fixture(scope="module")
def data(pairs):
    """Row 3 shows row 0's picture and says what row 2 says; row 4 has row 5's caption as a further one."""
    rows = [pairs[number] for number in ROWS]
    captions = [[row["caption"]] for row in rows]
    captions[3].append(captions[2][0].upper() + ".")
    captions[4].append(captions[5][0])
    return datasets.Dataset.from_dict({"image": [row["image"] for row in rows], "caption": captions})


@pytest.fixture
def term(tmp_path, clip_folder, scores_folder, data):
    def measure(**options):
        settings = {"output_dir": str(tmp_path), "use_cpu": True, "lambda_sds": 0.0, "per_device_train_batch_size": 6}
        args = SDSCLIPConfig(**settings, ranking_scores=scores_folder, **options)
        trainer = SDSCLIPTrainer(clip_folder, args, train_dataset=data)
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(6)])
        trainer.model.train()
        with torch.no_grad():
            found = trainer.compute_loss(trainer.model, batch).item()
        return found, trainer.take_notes("train")

    return measure


@pytest.mark.parametrize("hard_negatives", [False, True])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_is_the_plain_one_of_what_is_known(term, clip_folder, scores_folder, data, hard_negatives, masked):
    found, notes = term(mask_duplicates=masked, hard_negatives=hard_negatives)
    scores = CandidateScores.load(scores_folder)
    items = [scores.item(number) for number in ROWS]
    drawn = [item.caption for item in items]  # of the row's captions that one was scored
    others = [text for item in items for text in item.candidates if text != item.caption] if hard_negatives else []
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    with torch.no_grad():
        output = model(**processor(text=drawn + others, images=data["image"][:], return_tensors="pt", padding=True))
    texts, scale = output.text_embeds.double(), model.logit_scale.exp().item()
    if masked:
        captions = [
            [own, *(text.lower().rstrip(".") for text in row)]
            for own, row in zip(drawn, data["caption"][:], strict=True)
        ]
        pictures = list(ROWS)
    else:  # no two are the same
        captions, pictures, others = [[str(number)] for number in range(6)], list(range(6)), ["x"] * len(others)
    expected = masked_by_loops(output.image_embeds.double(), texts[:6], texts[6:], scale, pictures, captions, others)
    assert found == pytest.approx(expected.item(), rel=1e-5)
    # 0 and 3 by the picture, 2 by 3's caption, 4 and 5; 1 has a candidate of 0's among the negatives, its own caption.
    assert notes.get("false_negatives") == (pytest.approx((5 + hard_negatives) / 6) if masked else None)


class OfTwo:
    """An accelerator of two processes, whose collectives, as NCCL's, take no tensor of the CPU."""

    device = META

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        assert rows.device == META
        return torch.cat([rows, rows])


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_gpus_gather_what_is_on_them_and_cpus_the_rest(monkeypatch, form):
    group, widths = object(), []

    def of_cpus(columns, operation, group):
        widths.append((columns.device.type, group))
        columns.fill_(3)

    monkeypatch.setattr(contrastive, "group_of_cpus", lambda: group)
    monkeypatch.setattr(torch.distributed, "all_reduce", of_cpus)
    monkeypatch.setattr(torch.distributed.nn, "all_gather", lambda rows: (OfTwo().gather(rows), rows)[1:] * 2)
    args = SimpleNamespace(world_size=2, process_index=1, local_negatives=False, mask_duplicates=True)
    args.hard_negatives, args.contrastive_chunk_size = False, None
    embeds, keys = torch.empty(4, 8, device=META), torch.arange(1, 5)
    scalar = torch.empty((), device=META)
    pairs = Pairs(embeds, embeds, scalar, scalar, picture_keys=keys, caption_keys=keys[:, None])
    loss, figures = ContrastiveTerm(args, OfTwo(), form)(pairs, even=True)
    assert loss.device == figures["false_negatives"].device == META and widths == [("cpu", group)]
