# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Fine-tune CLIP with the diffusion distillation term; with no argument, on the embedded shapes world."""

from sdsclip_hf.commands.finetune import main

if __name__ == "__main__":
    main()
