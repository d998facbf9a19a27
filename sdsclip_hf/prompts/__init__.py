"""Prompt tuning of a frozen CLIP: CoOp, CoCoOp, KgCoOp and IntCoOp, few-shot, and what is left of a run."""
