"""What runs on a schedule?

Jobs, their scheduler and timetable, the promotion gate, probes, drift reports and retraining.
"""
