# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]  # or from git: ["sdsclip_hf @ git+https://github.com/OWNER/sdsclip_hf"]
# ///
"""Score models on benchmarks; with no argument, the bundled student on the embedded shapes world."""

from sdsclip_hf.commands.evaluate import main

if __name__ == "__main__":
    main()
