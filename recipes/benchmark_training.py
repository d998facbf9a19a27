# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]
# [tool.uv.sources]
# sdsclip_hf = { path = "..", editable = true }
# ///
"""What a training step with ranking distillation costs, against a contrastive step: medians of paired runs.

    python recipes/benchmark_training.py

Each row is one student with the same batches; the two kinds of run take turns, and the ratio is taken within each pair.
Nothing else should run on the machine meanwhile.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import datasets
import torch
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor
from transformers.utils import logging as transformers_logging

from sdsclip_hf import SDSCLIPConfig, SDSCLIPTrainer
from sdsclip_hf.checkpoints import write_json
from sdsclip_hf.images import picture_digest
from sdsclip_hf.metrics.install import install_quietly
from sdsclip_hf.ranking import CandidateScores
from sdsclip_hf.shapes import load_shapes, resolve
from sdsclip_hf.student import load_clip


def vit_b32(folder: Path) -> str:
    """A CLIP of ViT-B/32's size with random weights, and the bundled student's tokenizer."""
    tokenizer = CLIPProcessor.from_pretrained(resolve("shapes/student")).tokenizer
    special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=special)).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(), tokenizer).save_pretrained(folder)
    return str(folder)


def three_others(data: datasets.Dataset) -> datasets.Dataset:
    """The pictures whose caption was scored among three others, captioned with it alone."""
    scores = CandidateScores.load("shapes/scores")
    items = [scores.item(scores.numbers_of(picture_digest(image))[0]) for image in data["image"]]
    kept = [number for number, item in enumerate(items) if len(item.candidates) == 4]
    captions = [items[number].caption for number in kept]
    return data.select(kept).remove_columns("caption").add_column("caption", captions)


def seconds_a_step(model: str, data: datasets.Dataset, steps: int, **options) -> float:
    """The time of one optimiser step through the whole Trainer, data loading included."""
    clip, processor = load_clip(resolve(model))
    with tempfile.TemporaryDirectory() as folder:
        config = SDSCLIPConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            lambda_sds=0.0,
            trainable="full",
            learning_rate=1e-6,
            **options,
        )
        trainer = SDSCLIPTrainer(clip, config, train_dataset=data, processing_class=processor)
        assert trainer.teacher is None
        trainer.train()
        return _runtime(trainer) / steps


def _runtime(trainer: SDSCLIPTrainer) -> float:
    return next(row["train_runtime"] for row in reversed(trainer.state.log_history) if "train_runtime" in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs of each row")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark_training.json"))
    args = parser.parse_args()
    install_quietly()
    transformers_logging.set_verbosity_error()
    data = three_others(load_shapes("train"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        students = {
            "ViT-B/32's size, batch 32": (vit_b32(Path(folder)), 4),
            "shapes/student, batch 32": ("shapes/student", 60),
        }
        for name, (model, steps) in students.items():
            for candidates in (1, 3):
                pairs = []
                for _ in range(args.pairs):
                    plain = seconds_a_step(model, data, steps)
                    terms = {"lambda_rank": 1.0, "ranking_scores": "shapes/scores", "ranking_candidates": candidates}
                    ranking = seconds_a_step(model, data, steps, **terms)
                    pairs.append((plain, ranking))
                ratios = [ranking / plain for plain, ranking in pairs]
                row = {"student": name, "K": candidates, "ratio": statistics.median(ratios), "ratios": ratios}
                row["contrastive_seconds"] = statistics.median(plain for plain, _ in pairs)
                rows.append(row)
                print(
                    f"{name}, K = {candidates}: {row['contrastive_seconds']:.3f} s a contrastive step; with L_rank "
                    f"{row['ratio']:.2f} times that ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
                    flush=True,
                )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, {"threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
