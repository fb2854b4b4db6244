"""The terms: functions of features and classes. Know nothing else."""
