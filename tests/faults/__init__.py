"""Things broken on purpose: programs and keepers killed, disks filled, limits reached. Operating-system processes only.

WFL_FAULTS=N sets how many random kills each test makes (default 20 or less); WFL_FAULTS_SEED=N repeats a run.
"""
