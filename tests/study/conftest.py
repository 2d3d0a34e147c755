from data_fixtures import my_data as my_data
from data_fixtures import root as root
