"""PAC inside third-party trainers."""
