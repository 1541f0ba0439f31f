"""What a controller is compared with: base rates and base schedules written by hand or found by search."""
