"""The protocols of prompt tuning as a command: methods x datasets x seeds, with baselines beside, tables and plots."""
