"""The names of the attacked server's tasks; apart, since attackers must start fast and without torch."""

TASK = "flowers"
PRIVATE = "quite-private"
WIDE = "wide"
