"""`python -m charter`, and `accelerate launch -m charter`."""

from charter.commands.app import main

main()
