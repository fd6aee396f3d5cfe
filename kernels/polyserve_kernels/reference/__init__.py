"""What each operation means, in plain torch. Other backends are checked against it and have the same file names."""
