# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Compare arms over seeds from the same starts at equal steps; with no argument, what teaches a bag of words to bind."""

from sdsclip_hf.commands.study import main

if __name__ == "__main__":
    main()
