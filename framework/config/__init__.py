"""Settings of all commands: composed by Hydra, checked, and masked in records; outputs, messages and exit codes."""
