"""``sdsclip describe-attributes``: an attribute for each labelled picture, by a model's answers or from a list of words."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from sdsclip_hf.commands.ending import INTERRUPTED, one_line_errors
from sdsclip_hf.common.locks import working_in
from sdsclip_hf.common.terminal import hush_libraries
from sdsclip_hf.prompts.data.attributes import describe
from sdsclip_hf.prompts.data.describers import QUESTION, Answers, BestWords
from sdsclip_hf.prompts.data.few_shot import few_shot
from sdsclip_hf.prompts.data.sources import load_labelled
from sdsclip_hf.prompts.data.templates import DEFAULT


@one_line_errors(interrupted=INTERRUPTED)
def main(argv: Sequence[str] | None = None) -> None:
    """The command; IntCoOp's authors had the answers of BLIP-2."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--dataset_name", default="shapes", help="labelled pictures, as of sdsclip prompt-tune")
    add("--dataset_config_name", help="the dataset's configuration")
    add("--dataset_revision", help="branch, tag or commit of the dataset on the Hub")
    add("--split", default="train", help="which split is described")
    add("--image_column", help="default: the only column of images")
    add("--label_column", help="default: the first ClassLabel, else label")
    add("--image_dir", help="where the pictures of a split_zhou_NAME.json are; default: beside it")
    add("--shots", type=int, help="describe so many pictures of each class, those that --seed picks; default: all")
    add("--seed", type=int, default=1, help="of the picks, as in sdsclip prompt-tune")
    add("--model_name_or_path", default="Salesforce/blip2-opt-2.7b", help="a model that answers (image-text-to-text)")
    add("--revision", help="branch, tag or commit of that model")
    add("--question", default=QUESTION, help="{} is the class name")
    add("--max_words", type=int, default=2, help="how many words of an answer are kept")
    add("--words", nargs="+", help="pick from these by a CLIP, in place of questions; or a file of them, one a line")
    add("--clip", default="shapes/student", help="the CLIP that picks")
    add("--template", default=DEFAULT, help="the prompt that it picks by, {} the word and the class name")
    add("--output_dir", type=Path, default=Path("outputs/attributes"), help="the dataset's folder")
    args = parser.parse_args(argv)
    hush_libraries()
    dataset = load_labelled(
        args.dataset_name,
        args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        config_name=args.dataset_config_name,
        revision=args.dataset_revision,
        image_dir=args.image_dir,
    )
    if args.shots is not None:
        dataset = few_shot(dataset, args.shots, args.seed)
    if args.words:
        describer = BestWords(args.clip, _words(args.words), args.template)
    else:
        describer = Answers(args.model_name_or_path, args.question, args.revision, args.max_words)
    with working_in(args.output_dir):
        described = describe(dataset, describer, args.output_dir, args.dataset_name, args.split)
    shown = ", ".join(
        f"{row['attribute']} {dataset.features['label'].names[row['label']]}" for row in described.take(3)
    )
    print(f"{args.output_dir}: {len(described)} pictures with attributes, such as {shown}.")
    folder, source = (shlex.quote(str(name)) for name in (args.output_dir, args.dataset_name))
    print(f"Next: sdsclip prompt-tune --method intcoop --dataset_name {folder} --test_dataset_name {source}")


def _words(given: list[str]) -> list[str]:
    path = Path(given[0]).expanduser()
    if len(given) == 1 and path.is_file():
        return path.read_text(encoding="utf-8").splitlines()
    return given
