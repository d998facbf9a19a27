"""The demo: a page on which two CLIPs choose between two captions, here or as a Space of its own."""
