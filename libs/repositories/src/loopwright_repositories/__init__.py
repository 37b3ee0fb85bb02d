"""Git checkouts, and the forges that hold them: what investigator, pr-agent and measure know of a repository."""
