"""Plugins that come with PAC, found through entry points like anyone else's."""
