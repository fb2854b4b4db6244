"""`python -m ddplug` is the command `ddplug`."""

from ddplug.cli.app import main

main()
