"""stub"""
class Bulk: 
    def __init__(self,*a): pass
