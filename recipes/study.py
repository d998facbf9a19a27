# /// script
# requires-python = ">=3.10"
# dependencies = ["sdsclip_hf"]
# [tool.uv.sources]
# sdsclip_hf = { path = "..", editable = true }
# ///
"""Compare arms over seeds from one start at equal steps; with no argument, the paper's term on the shapes world."""

from sdsclip_hf.study import main

if __name__ == "__main__":
    main()
