"""What the analyses measure: records of numbers, without words."""
