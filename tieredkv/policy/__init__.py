"""Eviction and admission. Policies are chosen by the name in the configuration."""

from tieredkv.policy.admission import Admission as Admission
from tieredkv.policy.admission import AdmitAll as AdmitAll
from tieredkv.policy.arc import ARC as ARC
from tieredkv.policy.base import EvictionPolicy as EvictionPolicy
from tieredkv.policy.base import PlainPolicy as PlainPolicy
from tieredkv.policy.choice import POLICIES as POLICIES
from tieredkv.policy.choice import ChosenPolicy as ChosenPolicy
from tieredkv.policy.choice import make_policy as make_policy
from tieredkv.policy.hints import NO_HINTS as NO_HINTS
from tieredkv.policy.hints import UseHints as UseHints
from tieredkv.policy.hints import parse_hints as parse_hints
from tieredkv.policy.lru import LRU as LRU
from tieredkv.policy.mq import MQ as MQ
from tieredkv.policy.s3fifo import S3FIFO as S3FIFO
