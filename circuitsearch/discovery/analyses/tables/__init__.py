"""What the analyses measured, as tables and charts of a finding."""
