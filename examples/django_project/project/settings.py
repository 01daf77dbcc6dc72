"""The settings that budgets need, and little else."""

import os
from pathlib import Path

BASE_DIR = Path(__file__).parent.parent
SECRET_KEY = os.environ.get("DJANGO_SECRET_KEY", "only for this example")
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
ROOT_URLCONF = "project.urls"

INSTALLED_APPS = ["llm_budget_mw_django"]  # system checks, and the command `llm_budget_limits`
MIDDLEWARE = [
    "django.middleware.common.CommonMiddleware",
    "llm_budget_mw_django.BudgetMiddleware",
]
LLM_BUDGET = {"CONFIG": BASE_DIR.parent / "llm_budget.toml"}
