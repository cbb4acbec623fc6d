"""The page of one run or of several side by side: verdict, answers, curves, alarms, data and settings.

answers     answers before and after, searchable
charts      curves with alarms; win rates with intervals
curves      which metrics are drawn together, thinned
data        training data, settings, versions
evaluation  categories, equal length, judge, suites
headline    the verdict in words
page        the page
settings    settings of runs side by side
training    the training section
"""

__all__ = ["answers", "charts", "curves", "headline", "page", "settings"]
