"""What the stand-in provider plugins share: checks against an SDK's own classes, differences, errors, serving."""
