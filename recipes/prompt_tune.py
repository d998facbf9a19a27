# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Learn prompts for a frozen CLIP from a few images of each class; with no argument, all methods on the shapes world."""

from sdsclip_hf.commands.prompt_tune import main

if __name__ == "__main__":
    main()
