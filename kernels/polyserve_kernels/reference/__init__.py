"""What each operation means, in plain torch. Every other backend is checked against these files and has the same file
names."""
