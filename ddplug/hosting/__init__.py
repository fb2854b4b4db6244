"""Functions called by the lines that a patch inserts: `import ddplug.hosting as ddplug_cmi`."""

from ddplug.hosting.host import start
from ddplug.hosting.options import add_config, add_options

__all__ = ["add_config", "add_options", "start"]
