"""Ring 4: real kubectl, real containers, real kernel rules, and the process killed for real."""
