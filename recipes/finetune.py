# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]
# ///
"""Fine-tune CLIP with the diffusion distillation term; with no argument, on the embedded shapes world."""

from sdsclip_hf.finetune import main

if __name__ == "__main__":
    main()
