"""One run of the main job: its trainer, and its scores."""

from functools import lru_cache

from transformers import EarlyStoppingCallback

from sdsclip_hf import shapes
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.data.loading import load_image_captions
from sdsclip_hf.evaluation.results import evaluate_benchmarks
from sdsclip_hf.evaluation.scorers import ClipScorer
from sdsclip_hf.students.loading import load_student
from sdsclip_hf.students.open_clip_checkpoints import OpenClipOptions
from sdsclip_hf.training.arguments import DataArguments, ModelArguments
from sdsclip_hf.training.trainer import SDSCLIPTrainer

cached_data = lru_cache(maxsize=2)(load_image_captions)  # the same for a run and those that it is compared with


def make_trainer(
    model: ModelArguments, data: DataArguments, config: SDSCLIPConfig, title: str, eval_data: bool = True
) -> SDSCLIPTrainer:
    """The trainer of a run; the data is loaded once for all runs of a job.

    Args:
        model, data, config: what was asked for.
        title: what the run is called in its progress.
        eval_data: whether it is evaluated on the way.

    Raises:
        OSError: a model or a dataset cannot be loaded.
        ValueError: the parts do not fit one another.
    """
    source = {"config_name": data.dataset_config_name, "revision": data.dataset_revision}
    train = cached_data(
        data.dataset_name,
        split=data.train_split_name,
        streaming=data.streaming,
        max_samples=data.max_train_samples,
        **source,
    )
    evaluation = None
    if data.eval_split_name and eval_data:
        evaluation = cached_data(
            data.dataset_name, split=data.eval_split_name, max_samples=data.max_eval_samples, **source
        )
    callbacks = []
    if data.early_stopping_patience is not None and eval_data:
        if config.metric_for_best_model is None or config.eval_strategy == "no":
            raise ValueError(
                "--early_stopping_patience needs to know what to watch and when; set, for instance, "
                "--metric_for_best_model eval_loss --greater_is_better false --eval_strategy steps."
            )
        callbacks.append(EarlyStoppingCallback(data.early_stopping_patience))
    student, processor = model.model_name_or_path, None
    if model.open_clip != OpenClipOptions():
        student, processor = load_student(shapes.resolve(student), options=model.open_clip)
    trainer = SDSCLIPTrainer(
        model=student,
        processing_class=processor,
        teacher=model.teacher_name_or_path,
        args=config,
        train_dataset=train,
        eval_dataset=evaluation,
        callbacks=callbacks,
    )
    if trainer.progress is not None:
        trainer.progress.title = title
    return trainer


def score(trainer: SDSCLIPTrainer, data: DataArguments) -> dict:
    """The student's scores on ``test_benchmarks`` as it now is: benchmark -> rows, see [`score_rows`]."""
    scorer = ClipScorer(trainer.whole_student().base_clip, trainer.processing_class)
    return evaluate_benchmarks(scorer, data.test_benchmarks)
