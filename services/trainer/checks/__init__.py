"""What a plan is checked for, by noun: each check says which field, what is wrong with it, and what would be right."""
