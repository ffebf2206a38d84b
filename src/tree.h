/* tree.h - binary trees of boxes over tiles in slot order, on which tiles.c and count.c descend.
 *
 * Over tiles 0 .. count - 1, in preorder: the node over [a, b) stands before its left half [a, m), m = (a + b) / 2, and that
 * before its right half; a subtree over n tiles has 2 n - 1 nodes. */
#ifndef HRA_SRC_TREE_H
#define HRA_SRC_TREE_H

#include "src/mask.h"
#include "src/tiles.h"

/* A subtree: node, and the leaves it covers. */
struct hra_node {
    int at, a, b;
};

static inline struct hra_node hra_left(struct hra_node n)
{
    return (struct hra_node){n.at + 1, n.a, n.a + (n.b - n.a) / 2};
}

static inline struct hra_node hra_right(struct hra_node n)
{
    const int m = n.a + (n.b - n.a) / 2;
    return (struct hra_node){n.at + 2 * (m - n.a), m, n.b};
}

/* Fill the boxes of a subtree whose leaf i is tile[i] of the layout. */
static inline void hra_tree_fill(struct hra_box *box, const int *tile, struct hra_node n,
                                 const hra_mask *mask, const hra_order *order,
                                 const struct hra_layout *layout)
{
    if (n.b - n.a > 1) {
        hra_tree_fill(box, tile, hra_left(n), mask, order, layout);
        hra_tree_fill(box, tile, hra_right(n), mask, order, layout);
        hra_box_join(&box[n.at], mask, &box[hra_left(n).at], &box[hra_right(n).at]);
        return;
    }
    const int leaf = tile[n.a];
    box[n.at] = hra_box_of(mask, order, layout->slot0[leaf], layout->tile[leaf].rows);
}

#endif
