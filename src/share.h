/* share.h - what ranks tell each other when a plan is made: that they plan the same, who owns what and computes how much, and
 * which keys they need of each other. Collective all of it; `status` is what this rank has come to so far, and every rank
 * leaves with the same one. */
#ifndef HRA_SRC_SHARE_H
#define HRA_SRC_SHARE_H

#include "src/plan.h"

/* Do all ranks plan the same? HRA_ERR_MISMATCH names what differs. Where nobody has described the machine its nodes have as
 * many ranks as the smallest of these. */
hra_status hra_share_alike(hra_plan *plan, hra_status status);

/* Choose the sharding and compile our tiles: fills shard, layout, tiles, token, live, stats, needs and work. */
hra_status hra_share_work(hra_plan *plan);

/* Every rank learns how much the others receive, which stats has of our own rank, and on a model of all. */
hra_status hra_share_received(hra_plan *plan, hra_status status);

#endif
