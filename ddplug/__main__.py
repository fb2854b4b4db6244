"""`python -m ddplug` is the command `ddplug`."""

from ddplug.cli import main

main()
