"""Update rules and base schedules."""
