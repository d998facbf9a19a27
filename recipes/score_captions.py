# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf[candidates]"]  # or from git: ["sdsclip_hf[candidates] @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Score candidate captions with a diffusion model, once, for training with --ranking_scores."""

from sdsclip_hf.commands.score_captions import main

if __name__ == "__main__":
    main()
