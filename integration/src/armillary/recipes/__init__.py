"""Methods at work together: each module is one recipe, a function of your own objects.

A recipe imports the packages it joins and nothing else, so install those: its page names them.
"""
