"""What runs on a schedule?

Jobs, their scheduler and timetable, the gate, probes, drift reports and retraining.
"""
