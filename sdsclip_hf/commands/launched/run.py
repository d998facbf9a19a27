"""What accelerate's launcher runs on each process. Python puts a script's folder before all others: hence one of its own."""

from sdsclip_hf.commands.cli import main

if __name__ == "__main__":
    main()
