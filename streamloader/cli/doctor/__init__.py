"""The subcommand ``doctor``: examine how an address is reached, or this machine."""
