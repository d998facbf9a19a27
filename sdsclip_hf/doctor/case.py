"""What is looked at: the options of a run, and what the checks learn that later ones need."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sdsclip_hf.benchmarks import expand
from sdsclip_hf.common.devices import default_device
from sdsclip_hf.config import SDSCLIPConfig
from sdsclip_hf.planning.rehearsal import StepCost
from sdsclip_hf.training.arguments import DataArguments, ModelArguments, parse_arguments


@dataclass
class Case:
    """A run that has not begun.

    Attributes:
        model, data, config, name: as [`parse_arguments`] gives them.
        processes: of the run, all on this machine.
        refused: why this machine cannot compute as the options ask; None where it can.
        lacks: a package without which the options cannot even be read; None where there is none.
        compared: the runs that this one is compared with, by their names.
        missing: what could not be had (student, teacher, scores), so that nothing can be rehearsed with it.
        pairs: rows to train on, where known.
        cost: of a step of this run, where it could be rehearsed.
        disk: bytes that will be written to each folder, by what they are for.
    """

    model: ModelArguments
    data: DataArguments
    config: SDSCLIPConfig
    name: str
    processes: int = 1
    refused: str | None = None
    lacks: str | None = None
    compared: dict[str, SDSCLIPConfig] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    pairs: int | None = None
    cost: StepCost | None = None
    disk: list[tuple[Path, str, int]] = field(default_factory=list)

    @property
    def configs(self) -> dict[str, SDSCLIPConfig]:
        """Of all runs that the command makes: this one's (by the name "this run"), and of those it is compared with."""
        return {"this run": self.config, **self.compared}

    @property
    def needs_teacher(self) -> bool:
        return any(config.lambda_sds for config in self.configs.values())

    @property
    def benchmarks(self) -> list[str]:
        """Those that the run scores, each once."""
        return list(dict.fromkeys(expand([*self.data.test_benchmarks, *(self.config.benchmarks or [])])))

    @property
    def device(self) -> torch.device:
        """Where the run would take place."""
        return torch.device("cpu") if self.config.use_cpu else default_device()


def read_case(argv: Sequence[str], processes: int = 1) -> Case:
    """The options of ``sdsclip finetune`` as a case, also where this machine cannot carry them out.

    Raises:
        ValueError, OSError: as [`parse_arguments`], for what no other machine would take either.
    """
    more, first, refused, lacks = [], None, None, None
    while True:
        try:
            (model, data, config), name = parse_arguments([*argv, *more])
            break
        except ImportError as error:
            if "--deepspeed" in more:
                raise OSError(str(error)) from error
            more, lacks = [*more, "--deepspeed", ""], "deepspeed"
        except ValueError as error:
            first = first or error
            if "--use_cpu" in more:
                raise first from None
            more, refused = [*more, "--use_cpu"], str(error)  # there every precision is allowed
    if refused is not None:
        config.use_cpu = False
    return Case(model, data, config, name, processes, refused, lacks)
