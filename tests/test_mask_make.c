/* test_mask_make.c - how masks are made without text: what each function makes and refuses, which masks
 * have equal keys, how random_blocks draws. */
#include "tests/mask_help.h"

#include <criterion/parameterized.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hra_domain domain_of(int heads, int64_t tokens, int64_t a, int64_t b, int64_t c)
{
    hra_domain d = HRA_DOMAIN_INIT;

    d.heads = heads;
    d.tokens = tokens;
    d.grid[0] = a;
    d.grid[1] = b;
    d.grid[2] = c;
    return d;
}

/* ---- Masks without text ----------------------------------------------------------------------------- */

Test(mask_make, combinations_stop_at_a_depth_and_a_size)
{
    const hra_domain d = domain_of(1, 4, 0, 0, 0);
    hra_mask *m = parse(&d, NULL, "full"), *leaf = parse(&d, NULL, "causal"), *next = NULL;
    hra_status status = HRA_OK;
    int steps = 0;

    for (; status == HRA_OK && steps < 1000; steps++) {
        status = steps % 2 == 0 ? hra_mask_and(&next, leaf, m) : hra_mask_or(&next, leaf, m);
        if (status == HRA_OK) {
            hra_mask_destroy(m);
            m = next;
        }
    }
    cr_expect(eq(int, status, HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "nested more than 200 deep") != NULL, "'%s'", hra_last_error());
    cr_expect(eq(int, steps, 200));
    char *text = print(m); /* what combinations allow, the text does */
    hra_mask *again = parse(&d, NULL, text);
    free(text);
    hra_mask_destroy(again);
    hra_mask_destroy(m);

    m = hra_mask_keep(leaf);
    for (steps = 0, status = HRA_OK; status == HRA_OK && steps < 100; steps++) {
        status = hra_mask_and(&next, m, m);
        if (status == HRA_OK) {
            hra_mask_destroy(m);
            m = next;
        }
    }
    cr_expect(eq(int, status, HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "more than 1048576 parts") != NULL, "'%s'", hra_last_error());
    hra_mask_destroy(m);
    hra_mask_destroy(leaf);
}

Test(mask_make, constructors_make_what_the_text_makes)
{
    hra_domain d = domain_of(4, 0, 4, 4, 0);
    int64_t pair[] = {3, 3}, stride[] = {2, 3}, length[] = {5, 11}, row[] = {2, 0, 2}, key[] = {1, 0, 1};
    int first[] = {2, 0}, last[] = {3, 1}, sequence[] = {1, 0};
    static const char *const texts[] = {"full",
                                        "causal",
                                        "window(-,-1)",
                                        "grid(3,3)",
                                        "neighbourhood(3,3)",
                                        "neighbourhood(3,3; 2,3)",
                                        "docs(5,11)",
                                        "dilated(8,4,3)",
                                        "dilated(8,4,head,both)",
                                        "dilated(8,4,0,residue)",
                                        "global(3)",
                                        "blocks(5; 0:0; 2:1)",
                                        "blocks(5)",
                                        "local_blocks(3,2)",
                                        "strided_blocks(1,5,0)",
                                        "global_blocks(2,1,3)",
                                        "random_blocks(2,3,18446744073709551615)",
                                        "hierarchical_blocks(1,2,3)",
                                        "slots(hilbert; window(-,-1))",
                                        "!window(-,-1)",
                                        "causal | window(-,-1)",
                                        "docs(5,11) & (causal | window(-,-1))",
                                        "mix(docs(5,11); global(3); docs(5,11))",
                                        "causal & mix(docs(5,11); global(3); docs(5,11))",
                                        "slots(hilbert; mix(docs(5,11); global(3); docs(5,11)))",
                                        "heads(0-1: full; 2-3: mix(docs(5,11); global(3); docs(5,11)))",
                                        "batches(0: causal; 1: docs(5,11))"};
    enum { COUNT = sizeof(texts) / sizeof(texts[0]) };
    hra_mask *m[COUNT];
    hra_order *hilbert = order_of(&d, "hilbert");
    int made = 0;

    d.batch = 2;
    cr_assert(eq(int, hra_mask_full(&m[made++], &d), HRA_OK));
    cr_assert(eq(int, hra_mask_causal(&m[made++], &d), HRA_OK));
    cr_assert(eq(int, hra_mask_window(&m[made++], &d, HRA_UNBOUNDED, -1), HRA_OK));
    cr_assert(eq(int, hra_mask_grid(&m[made++], &d, pair), HRA_OK));
    cr_assert(eq(int, hra_mask_neighbourhood(&m[made++], &d, pair, NULL), HRA_OK));
    cr_assert(eq(int, hra_mask_neighbourhood(&m[made++], &d, pair, stride), HRA_OK));
    cr_assert(eq(int, hra_mask_docs(&m[made++], &d, length, 2), HRA_OK));
    hra_mask *const docs = m[made - 1];
    cr_assert(eq(int, hra_mask_dilated(&m[made++], &d, 8, 4, 3, HRA_DILATED_KEYS), HRA_OK));
    cr_assert(eq(int, hra_mask_dilated(&m[made++], &d, 8, 4, HRA_OFFSET_HEAD, HRA_DILATED_BOTH), HRA_OK));
    cr_assert(eq(int, hra_mask_dilated(&m[made++], &d, 8, 4, 0, HRA_DILATED_RESIDUE), HRA_OK));
    cr_assert(eq(int, hra_mask_global(&m[made++], &d, 3), HRA_OK));
    hra_mask *const global = m[made - 1];
    cr_assert(eq(int, hra_mask_blocks(&m[made++], &d, 5, row, key, 3), HRA_OK));
    cr_assert(eq(int, hra_mask_blocks(&m[made++], &d, 5, NULL, NULL, 0), HRA_OK));
    cr_assert(eq(int, hra_mask_local_blocks(&m[made++], &d, 3, 2), HRA_OK));
    cr_assert(eq(int, hra_mask_strided_blocks(&m[made++], &d, 1, 5, 0), HRA_OK));
    cr_assert(eq(int, hra_mask_global_blocks(&m[made++], &d, 2, 1, 3), HRA_OK));
    cr_assert(eq(int, hra_mask_random_blocks(&m[made++], &d, 2, 3, UINT64_MAX), HRA_OK));
    cr_assert(eq(int, hra_mask_hierarchical_blocks(&m[made++], &d, 1, 2, 3), HRA_OK));
    cr_assert(eq(int, hra_mask_slots(&m[made++], hilbert, m[2]), HRA_OK));
    cr_assert(eq(int, hra_mask_not(&m[made++], m[2]), HRA_OK));
    cr_assert(eq(int, hra_mask_or(&m[made++], m[1], m[2]), HRA_OK));
    hra_mask *const either = m[made - 1];
    cr_assert(eq(int, hra_mask_and(&m[made++], docs, either), HRA_OK));
    const hra_mask *const branches[] = {docs, global, docs};
    cr_assert(eq(int, hra_mask_mix(&m[made++], branches, 3), HRA_OK));
    hra_mask *const mix = m[made - 1];
    cr_assert(eq(int, hra_mask_and(&m[made++], m[1], mix), HRA_OK));
    cr_assert(eq(int, hra_mask_slots(&m[made++], hilbert, mix), HRA_OK));
    const hra_mask *const choice[] = {mix, m[0]};
    cr_assert(eq(int, hra_mask_heads(&m[made++], first, last, choice, 2), HRA_OK));
    const hra_mask *const masks[] = {docs, m[1]};
    cr_assert(eq(int, hra_mask_batches(&m[made++], sequence, sequence, masks, 2), HRA_OK));
    cr_assert(eq(int, made, COUNT));
    memset(pair, 0x55, sizeof(pair)); /* arrays are copied, parts are held */
    memset(stride, 0x55, sizeof(stride));
    memset(length, 0x55, sizeof(length));
    memset(row, 0x55, sizeof(row));
    hra_order_destroy(hilbert);

    for (int n = COUNT - 1; n >= 0; n--) { /* the last are made of the first */
        char *text = print(m[n]);
        hra_mask *same = parse(&d, NULL, texts[n]);

        cr_expect(eq(str, text, (char *)texts[n]));
        cr_expect(hra_mask_hash(m[n]) == hra_mask_hash(same), "%s", text);
        for (int h = 0; h < 8; h++)
            for (int i = 0; i < 256; i++)
                cr_assert(hra_mask_count(m[n], h / 4, h % 4, i / 16, i % 16) ==
                          hra_mask_count(same, h / 4, h % 4, i / 16, i % 16));
        free(text);
        hra_mask_destroy(same);
    }
    for (int n = 0; n < COUNT; n++) {
        hra_mask_destroy(m[n]);
        if (n + 1 < COUNT)
            cr_expect(hra_mask_count(m[COUNT - 1], 0, 0, 3, 1) == 1, "held by the masks made of it");
    }
    hra_mask_destroy(NULL);
}

/* One mask alone, and two signs that cancel, make no new mask. */
Test(mask_make, what_changes_nothing_is_left_out)
{
    const hra_domain d = domain_of(2, 16, 0, 0, 0);
    hra_mask *m = parse(&d, NULL, "causal"), *opposite = NULL, *twice = NULL, *mix = NULL;
    char *text;

    cr_assert(eq(int, hra_mask_not(&opposite, m), HRA_OK));
    cr_assert(eq(int, hra_mask_not(&twice, opposite), HRA_OK));
    cr_assert(eq(int, hra_mask_mix(&mix, (const hra_mask *const[]){m}, 1), HRA_OK));
    text = print(twice);
    cr_expect(eq(str, text, "causal"));
    free(text);
    text = print(mix);
    cr_expect(eq(str, text, "causal"));
    cr_expect(eq(int, hra_mask_branches(mix, 0, 0), 1));
    free(text);
    hra_mask_destroy(m);
    hra_mask_destroy(opposite);
    hra_mask_destroy(twice);
    hra_mask_destroy(mix);
}

Test(mask_make, branches_are_those_of_the_head_and_sequence)
{
    hra_domain d = domain_of(3, 16, 0, 0, 0);
    d.batch = 2;
    hra_mask *m =
        parse(&d, NULL,
              "causal & batches(0: heads(0: full; 1: mix(full; causal); 2: longnet(4:1, 8:2, 16:4));"
              " 1: slots(hilbert; mix(full; full; full; full)))");
    static const int branches[2][3] = {{1, 2, 3}, {4, 4, 4}};

    for (int b = 0; b < 2; b++)
        for (int h = 0; h < 3; h++)
            cr_expect(eq(int, hra_mask_branches(m, b, h), branches[b][h]), "sequence %d, head %d", b, h);
    cr_expect(eq(int, hra_mask_count(m, 1, 0, 3, 3), 4));
    cr_expect(eq(int, hra_mask_count(m, 1, 0, 3, 4), 0));
    hra_mask_destroy(m);
}

static void expect_error(hra_status status, const char *says)
{
    cr_expect(eq(int, status, HRA_ERR_ARG), "no '%s'", says);
    cr_expect(strstr(hra_last_error(), says) != NULL, "'%s' does not say '%s'", hra_last_error(), says);
}

Test(mask_make, leaves_refuse)
{
    const hra_domain d = domain_of(4, 16, 4, 4, 0), line = domain_of(4, 16, 0, 0, 0),
                     bad = domain_of(1, 0, 0, 0, 0);
    const int64_t minus[] = {1, -1}, zero[] = {0, 16}, ones[] = {1, 1}, two[] = {1, 2}, four[] = {0, 4};
    hra_mask *m = NULL;

    expect_error(hra_mask_full(NULL, &d), "full mask: out is a NULL pointer");
    expect_error(hra_mask_causal(&m, NULL), "domain: NULL pointer");
    expect_error(hra_mask_window(&m, &bad, 1, 1), "tokens is 0");
    expect_error(hra_mask_parse(&m, &bad, NULL, "full"), "tokens is 0");
    expect_error(hra_mask_parse(&m, &d, NULL, NULL), "text is a NULL pointer");
    expect_error(hra_mask_parse(NULL, &d, NULL, "full"), "out is a NULL pointer");
    expect_error(hra_mask_grid(&m, &line, ones), "grid mask: the domain of 16 tokens has no grid");
    expect_error(hra_mask_grid(&m, &d, minus), "grid mask: the radius of axis 1 is -1, it must be 0 or more");
    expect_error(hra_mask_grid(&m, &d, NULL), "radius is a NULL pointer");
    expect_error(hra_mask_neighbourhood(&m, &line, ones, NULL),
                 "neighbourhood mask: the domain of 16 tokens has no");
    expect_error(hra_mask_neighbourhood(&m, &d, NULL, ones), "extent is a NULL pointer");
    expect_error(hra_mask_neighbourhood(&m, &d, zero, NULL),
                 "the extent of axis 0 is 0, it must be 1 or more");
    expect_error(hra_mask_neighbourhood(&m, &d, ones, two), "the stride of axis 1 is 2, it must be 1 to 1");
    expect_error(hra_mask_neighbourhood(&m, &d, ones, minus),
                 "the stride of axis 1 is -1, it must be 1 to 1");
    expect_error(hra_mask_docs(&m, &d, zero, 2), "length 0 is 0");
    expect_error(hra_mask_docs(&m, &d, ones, 2), "the 2 lengths add up to 2, the domain has 16 tokens");
    expect_error(hra_mask_docs(&m, &d, ones, 0), "count is 0");
    expect_error(hra_mask_docs(&m, &d, NULL, 2), "length is a NULL pointer");
    expect_error(hra_mask_docs(&m, &d, (const int64_t[]){1, INT64_MAX}, 2),
                 "the first 2 lengths add up to more");
    expect_error(hra_mask_dilated(NULL, &d, 8, 2, 0, HRA_DILATED_KEYS),
                 "dilated mask: out is a NULL pointer");
    expect_error(hra_mask_dilated(&m, NULL, 8, 2, 0, HRA_DILATED_KEYS), "domain: NULL pointer");
    expect_error(hra_mask_dilated(&m, &d, 0, 2, 0, HRA_DILATED_KEYS), "segment is 0, it must be 1 or more");
    expect_error(hra_mask_dilated(&m, &d, 8, 0, 0, HRA_DILATED_KEYS), "rate is 0, it must be 1 or more");
    expect_error(hra_mask_dilated(&m, &d, 8, INT64_MIN, 0, HRA_DILATED_KEYS), "rate is -9223372036854775808");
    expect_error(hra_mask_dilated(&m, &d, 8, 2, 2, HRA_DILATED_KEYS), "offset is 2");
    expect_error(hra_mask_dilated(&m, &d, 8, 2, -2, HRA_DILATED_BOTH), "offset is -2");
    expect_error(hra_mask_dilated(&m, &d, 8, 2, 1, HRA_DILATED_RESIDUE), "offset is 1");
    expect_error(hra_mask_dilated(&m, &d, 8, 2, HRA_OFFSET_HEAD, HRA_DILATED_RESIDUE), "residue");
    expect_error(hra_mask_dilated(&m, &d, 8, 2, 0, (hra_dilation)3), "mode is 3");
    expect_error(hra_mask_global(&m, &d, 0), "global mask: count is 0, it must be 1 or more");
    expect_error(hra_mask_global(NULL, &d, 1), "global mask: out is a NULL pointer");
    expect_error(hra_mask_blocks(&m, &d, 0, ones, ones, 2), "blocks of 0 tokens");
    expect_error(hra_mask_blocks(&m, &d, 4, ones, four, 2),
                 "pair 1 is query block 1, key block 4, they must be 0 to 3");
    expect_error(hra_mask_blocks(&m, &d, 4, minus, ones, 2), "pair 1 is query block -1");
    expect_error(hra_mask_blocks(&m, &d, 4, ones, NULL, 2), "key_block is a NULL pointer");
    expect_error(hra_mask_blocks(&m, &d, 4, ones, ones, -1), "count is -1");
    expect_error(hra_mask_local_blocks(&m, &d, 0, 1), "local_blocks mask: blocks of 0 tokens");
    expect_error(hra_mask_local_blocks(&m, &d, 4, -1), "width is -1, it must be 0 or more");
    expect_error(hra_mask_local_blocks(NULL, &d, 4, 1), "local_blocks mask: out is a NULL pointer");
    expect_error(hra_mask_strided_blocks(&m, &d, -4, 1, 1), "strided_blocks mask: blocks of -4 tokens");
    expect_error(hra_mask_strided_blocks(&m, &d, 4, 0, 1), "stride is 0, it must be 1 or more");
    expect_error(hra_mask_strided_blocks(&m, &d, 4, 1, -1), "width is -1");
    expect_error(hra_mask_strided_blocks(&m, NULL, 4, 1, 1), "domain: NULL pointer");
    expect_error(hra_mask_global_blocks(&m, &d, 0, 1, 1), "global_blocks mask: blocks of 0 tokens");
    expect_error(hra_mask_global_blocks(&m, &d, 4, -1, 1), "global is -1, it must be 0 or more");
    expect_error(hra_mask_global_blocks(&m, &d, 4, 1, -1), "width is -1");
    expect_error(hra_mask_random_blocks(&m, &d, 0, 1, 1), "random_blocks mask: blocks of 0 tokens");
    expect_error(hra_mask_random_blocks(&m, &d, 4, -1, 1), "count is -1, it must be 0 or more");
    expect_error(hra_mask_hierarchical_blocks(&m, &d, 0, 1, 1),
                 "hierarchical_blocks mask: blocks of 0 tokens");
    expect_error(hra_mask_hierarchical_blocks(&m, &d, 4, -1, 1), "width is -1");
    expect_error(hra_mask_hierarchical_blocks(&m, &d, 4, 1, 0), "levels is 0, it must be 1 to 62");
    expect_error(hra_mask_hierarchical_blocks(&m, &d, 4, 1, 63), "levels is 63, it must be 1 to 62");
    cr_expect(m == NULL, "nothing is written on failure");
    cr_expect(eq(int, hra_mask_count(NULL, 0, 0, 0, 0), 0));
}

/* More blocks than any machine has room for. */
Test(mask_make, lists_of_blocks_that_cannot_be_kept)
{
    const hra_domain d = domain_of(1, INT64_MAX, 0, 0, 0);
    const int64_t counts[] = {0, 1, INT64_C(1) << 40, INT64_MAX};
    hra_mask *m = NULL;

    for (int n = 0; n < 4; n++)
        cr_expect(eq(int, hra_mask_random_blocks(&m, &d, 1, counts[n], 1), HRA_ERR_MEMORY), "%s",
                  hra_last_error());
    cr_expect(eq(int, hra_mask_blocks(&m, &d, 1, NULL, NULL, 0), HRA_ERR_MEMORY));
    cr_expect(m == NULL);
}

Test(mask_make, masks_of_masks_refuse)
{
    const hra_domain d = domain_of(4, 16, 4, 4, 0), line = domain_of(4, 16, 0, 0, 0);
    hra_domain two = d;
    two.batch = 2;
    const hra_domain others[] = {domain_of(3, 16, 4, 4, 0), line, domain_of(4, 16, 2, 8, 0),
                                 domain_of(4, 17, 0, 0, 0), two};
    static const char *const differs[] = {"heads 4 and 3", "axes of the grid 2 and 0", "grid axis 0 4 and 2",
                                          "tokens 16 and 17", "batch 1 and 2"};
    hra_mask *m = NULL, *full = parse(&d, NULL, "full"), *mix = parse(&d, NULL, "mix(full; causal)"),
             *grid = parse(&d, NULL, "full & !neighbourhood(1,1)"),
             *slots = parse(&d, NULL, "!slots(hilbert; global(1))"),
             *in_heads = parse(&d, NULL, "heads(0: full; 1-3: mix(full; causal))");

    expect_error(hra_mask_and(&m, full, NULL), "and mask: mask 1 is a NULL pointer");
    expect_error(hra_mask_or(NULL, full, full), "or mask: out is a NULL pointer");
    for (size_t n = 0; n < sizeof(others) / sizeof(others[0]); n++) {
        hra_mask *other = parse(&others[n], NULL, "full");
        expect_error(hra_mask_or(&m, full, other), differs[n]);
        expect_error(hra_mask_mix(&m, (const hra_mask *const[]){full, other}, 2), differs[n]);
        hra_mask_destroy(other);
    }
    expect_error(hra_mask_and(&m, mix, mix), "and mask: masks 0 and 1 are both mixtures");
    expect_error(hra_mask_and(&m, mix, in_heads), "and mask: masks 0 and 1 are both mixtures");
    expect_error(hra_mask_or(&m, full, mix), "or mask: mask 1 is a mixture");
    expect_error(hra_mask_or(&m, in_heads, full), "or mask: mask 0 is a mixture");
    expect_error(hra_mask_not(&m, mix), "not mask: the mask is a mixture");
    expect_error(hra_mask_not(&m, NULL), "not mask: the mask is a NULL pointer");
    expect_error(hra_mask_not(NULL, full), "not mask: out is a NULL pointer");
    expect_error(hra_mask_mix(&m, (const hra_mask *const[]){full, full, mix}, 3),
                 "mix mask: mask 2 is a mixture");
    expect_error(hra_mask_mix(&m, (const hra_mask *const[]){mix}, 1), "mix mask: mask 0 is a mixture");
    expect_error(hra_mask_mix(&m, (const hra_mask *const[]){full}, 0), "mix mask: count is 0");
    expect_error(hra_mask_mix(&m, (const hra_mask *const[]){NULL}, 1), "mix mask: mask 0 is a NULL pointer");
    expect_error(hra_mask_mix(&m, NULL, 1), "mix mask: mask is a NULL pointer");
    expect_error(hra_mask_mix(NULL, (const hra_mask *const[]){full}, 1), "mix mask: out is a NULL pointer");

    hra_order *hilbert = order_of(&d, "hilbert"), *flat = order_of(&line, "hilbert"),
              *wide = order_of(&others[2], "hilbert"), *longer = order_of(&others[3], "identity");
    expect_error(hra_mask_slots(&m, NULL, full), "slots mask: order is a NULL pointer");
    expect_error(hra_mask_slots(&m, hilbert, NULL), "slots mask: mask is a NULL pointer");
    expect_error(hra_mask_slots(NULL, hilbert, full), "slots mask: out is a NULL pointer");
    expect_error(hra_mask_slots(&m, longer, full), "17 tokens");
    expect_error(hra_mask_slots(&m, flat, full), "slots mask: ");
    expect_error(hra_mask_slots(&m, wide, full), "slots mask: ");
    expect_error(hra_mask_slots(&m, hilbert, grid), "slots mask: ");
    expect_error(hra_mask_slots(&m, hilbert, slots), "slots mask: ");
    hra_order_destroy(hilbert);
    hra_order_destroy(flat);
    hra_order_destroy(wide);
    hra_order_destroy(longer);
    cr_expect(m == NULL, "nothing is written on failure");
    hra_mask_destroy(full);
    hra_mask_destroy(mix);
    hra_mask_destroy(grid);
    hra_mask_destroy(slots);
    hra_mask_destroy(in_heads);
}

Test(mask_make, choices_refuse)
{
    hra_domain d = domain_of(4, 16, 0, 0, 0);
    d.batch = 4;
    hra_mask *m = NULL, *full = parse(&d, NULL, "full");
    const hra_mask *const masks[] = {full, full};
    static const char *const names[][2] = {{"heads", "head"}, {"batches", "sequence"}};

    for (int n = 0; n < 2; n++) {
        hra_status (*const choose)(hra_mask **, const int *, const int *, const hra_mask *const *, int) =
            n == 0 ? hra_mask_heads : hra_mask_batches;
        char says[5][80];

        snprintf(says[0], 80, "%s mask: %s 2 of 4 is in no range", names[n][0], names[n][1]);
        snprintf(says[1], 80, "%s mask: %s 1 is in two ranges, 0 to 1 and 1 to 3", names[n][0], names[n][1]);
        snprintf(says[2], 80, "%s mask: range 1 is %ss 2 to 4, the domain has %ss 0 to 3", names[n][0],
                 names[n][1], names[n][1]);
        snprintf(says[3], 80, "range 0 is %ss 2 to 1", names[n][1]);
        snprintf(says[4], 80, "%s mask: out is a NULL pointer", names[n][0]);
        expect_error(choose(&m, (int[]){0, 3}, (int[]){1, 3}, masks, 2), says[0]);
        expect_error(choose(&m, (int[]){0, 1}, (int[]){1, 3}, masks, 2), says[1]);
        expect_error(choose(&m, (int[]){0, 2}, (int[]){1, 4}, masks, 2), says[2]);
        expect_error(choose(&m, (int[]){0, 2}, (int[]){1, INT_MAX}, masks, 2), "range 1 is ");
        expect_error(choose(&m, (int[]){2, 0}, (int[]){1, 3}, masks, 2), says[3]);
        expect_error(choose(NULL, (int[]){0}, (int[]){3}, masks, 1), says[4]);
        expect_error(choose(&m, (int[]){0}, (int[]){3}, masks, 0), "count is 0");
        expect_error(choose(&m, NULL, (int[]){3}, masks, 1), "first is a NULL pointer");
        expect_error(choose(&m, (int[]){0}, NULL, masks, 1), "last is a NULL pointer");
        expect_error(choose(&m, (int[]){0}, (int[]){3}, NULL, 1), "mask is a NULL pointer");
        expect_error(choose(&m, (int[]){0}, (int[]){3}, (const hra_mask *const[]){NULL}, 1),
                     "mask 0 is a NULL pointer");
    }
    cr_expect(m == NULL, "nothing is written on failure");
    hra_mask_destroy(full);
}

/* ---- Keys ------------------------------------------------------------------------------------------- */

struct alike {
    char text[100];
    int batch, head;
    char other[100];
    int other_batch, other_head;
};

/* Two sequences of 16 tokens on a 4 x 4 grid, 6 heads: the second mask, asked there, is the first one
 * asked here. */
ParameterizedTestParameters(mask_make, keys_see_through_choices)
{
    static struct alike rows[] = {
        {"causal & heads(0-1: full; 2: window(4,0); 3-5: causal)", 0, 1, "causal & full", 0, 0},
        {"causal & heads(0-1: full; 2: window(4,0); 3-5: causal)", 1, 2, "causal & window(4,0)", 0, 0},
        {"heads(0-2: full; 3-5: heads(0-4: causal; 5: full))", 0, 4, "causal", 0, 0},
        {"heads(0-2: full; 3-5: heads(0-4: causal; 5: full))", 0, 5, "full", 0, 0},
        {"batches(0: full; 1: causal)", 1, 0, "causal", 0, 3},
        {"batches(0: full; 1: heads(0-2: causal; 3-5: docs(9,7)))", 1, 5, "docs(9,7)", 0, 0},
        {"!batches(0: full; 1: causal)", 0, 0, "!full", 1, 0},
        {"dilated(8,3,head,both)", 0, 5, "dilated(8,3,2,both)", 0, 0},
        {"dilated(8,3,head,both)", 0, 1, "dilated(8,3,head,both)", 1, 4},
        {"dilated(8,1,head)", 0, 5, "dilated(8,1)", 0, 0},
        {"longnet(4:1, 8:2)", 0, 3, "mix(dilated(4,1,0,both); dilated(8,2,1,both))", 0, 0},
        {"slots(hilbert; dilated(8,2,head))", 0, 3, "slots(hilbert; dilated(8,2,1))", 0, 2},
        {"mix(heads(0-5: full); causal)", 0, 0, "mix(full; causal)", 0, 0},
    };
    return cr_make_param_array(struct alike, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct alike *k, mask_make, keys_see_through_choices)
{
    hra_domain d = domain_of(6, 0, 4, 4, 0);

    d.batch = 2;
    hra_mask *a = parse(&d, NULL, k->text), *b = parse(&d, NULL, k->other);
    cr_expect(hra_mask_key(a, k->batch, k->head) == hra_mask_key(b, k->other_batch, k->other_head), "%s",
              k->text);
    cr_expect(hra_mask_by_head(a) == (strstr(k->text, "head") != NULL && strstr(k->text, "(8,1,") == NULL) ||
                  strstr(k->text, "longnet") != NULL,
              "%s", k->text);
    cr_expect(eq(int, hra_mask_by_batch(a), strstr(k->text, "batches") != NULL), "%s", k->text);
    hra_mask_destroy(a);
    hra_mask_destroy(b);
}

Test(mask_make, keys_tell_patterns_apart)
{
    static const char *const texts[] = {"full",
                                        "causal",
                                        "!causal",
                                        "!full",
                                        "window(4,0)",
                                        "window(0,4)",
                                        "window(-,4)",
                                        "window(4,-)",
                                        "grid(1,1)",
                                        "grid(1,2)",
                                        "grid(2,1)",
                                        "neighbourhood(1,2)",
                                        "neighbourhood(2,1)",
                                        "neighbourhood(3,3)",
                                        "neighbourhood(3,3; 1,2)",
                                        "neighbourhood(3,3; 2,1)",
                                        "docs(8,8)",
                                        "docs(7,9)",
                                        "docs(7,8,1)",
                                        "dilated(8,2)",
                                        "dilated(8,2,1)",
                                        "dilated(8,2,0,both)",
                                        "dilated(8,2,0,residue)",
                                        "dilated(4,2)",
                                        "dilated(8,4)",
                                        "global(1)",
                                        "global(2)",
                                        "blocks(4)",
                                        "blocks(5)",
                                        "blocks(4; 0:0)",
                                        "blocks(4; 0:1)",
                                        "blocks(4; 1:0)",
                                        "blocks(4; 0:0 1)",
                                        "local_blocks(4,1)",
                                        "local_blocks(4,2)",
                                        "local_blocks(5,1)",
                                        "strided_blocks(4,2,1)",
                                        "strided_blocks(4,1,2)",
                                        "strided_blocks(2,4,1)",
                                        "global_blocks(4,2,1)",
                                        "global_blocks(4,1,2)",
                                        "random_blocks(2,2,1)",
                                        "random_blocks(2,2,2)",
                                        "random_blocks(2,1,2)",
                                        "hierarchical_blocks(1,1,2)",
                                        "hierarchical_blocks(1,2,1)",
                                        "slots(hilbert; window(4,0))",
                                        "slots(morton; window(4,0))",
                                        "slots(hilbert; window(0,4))",
                                        "slots(hilbert; causal & window(4,0))",
                                        "causal & slots(morton; window(4,0))",
                                        "causal & window(4,0)",
                                        "causal | window(4,0)",
                                        "mix(causal; window(4,0))",
                                        "causal & window(4,0) & full",
                                        "causal & (window(4,0) | full)",
                                        "causal & window(4,0) | full",
                                        "!(causal & window(4,0))",
                                        "!causal & window(4,0)",
                                        "mix(causal; causal)",
                                        "mix(causal; causal; causal)",
                                        "causal & causal"};
    enum { COUNT = sizeof(texts) / sizeof(texts[0]) };
    const hra_domain d = domain_of(2, 0, 4, 4, 0);
    uint64_t key[COUNT], hash[COUNT];

    for (int n = 0; n < COUNT; n++) {
        hra_mask *m = parse(&d, NULL, texts[n]);

        key[n] = hra_mask_key(m, 0, 1);
        hash[n] = hra_mask_hash(m);
        cr_expect(hra_mask_key(m, 0, 0) == key[n] && !hra_mask_by_batch(m) && !hra_mask_by_head(m), "%s",
                  texts[n]);
        hra_mask_destroy(m);
        for (int other = 0; other < n; other++)
            cr_expect(key[n] != key[other] && hash[n] != hash[other], "%s and %s", texts[n], texts[other]);
    }
}

Test(mask_make, hashes_see_every_head_and_sequence)
{
    static const char *const texts[] = {
        "full",
        "heads(0: full; 1: causal)",
        "heads(0: causal; 1: full)",
        "batches(0: full; 1: causal)",
        "batches(0: causal; 1: full)",
        "batches(0: full; 1: heads(0: full; 1: causal))",
        "heads(0: full; 1: batches(0: full; 1: window(1,1)))",
        "dilated(8,2,head)",
        "dilated(8,2)",
    };
    enum { COUNT = sizeof(texts) / sizeof(texts[0]) };
    hra_domain d = domain_of(2, 16, 0, 0, 0);
    uint64_t hash[COUNT];

    d.batch = 2;
    for (int n = 0; n < COUNT; n++) {
        hra_mask *m = parse(&d, NULL, texts[n]);

        hash[n] = hra_mask_hash(m);
        hra_mask_destroy(m);
        for (int other = 0; other < n; other++)
            cr_expect(hash[n] != hash[other], "%s and %s", texts[n], texts[other]);
    }
}

/* ---- How random_blocks draws --------------------------------------------------------------------- */

/* blocks [blocks][blocks] of random_blocks(1,n,seed): which attend. */
static void read_blocks(unsigned char *out, int64_t blocks, int64_t n, uint64_t seed)
{
    const hra_domain d = domain_of(1, blocks, 0, 0, 0);
    hra_mask *m = NULL;

    cr_assert(eq(int, hra_mask_random_blocks(&m, &d, 1, n, seed), HRA_OK));
    for (int64_t i = 0; i < blocks * blocks; i++)
        out[i] = (unsigned char)hra_mask_count(m, 0, 0, i / blocks, i % blocks);
    hra_mask_destroy(m);
}

Test(mask_make, random_blocks_draws_distinct_blocks)
{
    static const int64_t cases[][2] = {{1, 0}, {1, 5}, {2, 1},   {7, 0}, {7, 3},
                                       {7, 5}, {7, 6}, {7, 100}, {64, 9}};
    unsigned char first[64 * 64], again[64 * 64], other[64 * 64];

    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        const int64_t blocks = cases[c][0], n = cases[c][1], row = 1 + (n < blocks - 1 ? n : blocks - 1);

        for (uint64_t seed = 0; seed < 20; seed++) {
            read_blocks(first, blocks, n, seed);
            for (int64_t i = 0; i < blocks; i++) {
                int64_t live = 0;
                for (int64_t j = 0; j < blocks; j++)
                    live += first[i * blocks + j];
                cr_assert(live == row && first[i * blocks + i], "%d blocks, %d drawn, row %d: %d live",
                          (int)blocks, (int)n, (int)i, (int)live);
            }
            read_blocks(again, blocks, n, seed);
            cr_assert(memcmp(first, again, (size_t)(blocks * blocks)) == 0);
            /* Two seeds that differ in a single bit, a low or a high one. */
            read_blocks(other, blocks, n, seed ^ UINT64_C(1) << (seed * 3));
            cr_assert(blocks < 64 || memcmp(first, other, (size_t)(blocks * blocks)) != 0, "seed %d",
                      (int)seed);
        }
    }
}

/* Sums of (found - expected)^2 / expected lie near their number of cells, to a few times its square root,
 * where every block is as likely as any other: over seeds for each pair, over the rows of one mask for
 * each key block and for each distance. */
Test(mask_make, random_blocks_draws_evenly)
{
    enum { BLOCKS = 17, SEEDS = 2000, DRAWN = 4, MANY = 500, OF_MANY = 20 };
    static unsigned char drawn[MANY * MANY];
    static int pair[BLOCKS * BLOCKS], key[MANY], distance[MANY];
    const double expected = (double)SEEDS * DRAWN / (BLOCKS - 1);
    double over_seeds = 0, over_keys = 0, over_distances = 0;

    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        read_blocks(drawn, BLOCKS, DRAWN, seed);
        for (int x = 0; x < BLOCKS * BLOCKS; x++)
            pair[x] += drawn[x];
    }
    for (int x = 0; x < BLOCKS * BLOCKS; x++)
        over_seeds += x % (BLOCKS + 1) == 0 ? 0 : (pair[x] - expected) * (pair[x] - expected) / expected;
    cr_expect(over_seeds < 1.3 * BLOCKS * BLOCKS, "%g", over_seeds); /* 272 x (1 - 4/16) = 204 on average */

    read_blocks(drawn, MANY, OF_MANY, 1);
    for (int i = 0; i < MANY; i++)
        for (int j = 0; j < MANY; j++)
            if (i != j && drawn[i * MANY + j]) {
                key[j]++;
                distance[(j - i + MANY) % MANY]++;
            }
    for (int x = 0; x < MANY; x++) {
        over_keys += (key[x] - OF_MANY) * (key[x] - OF_MANY) / (double)OF_MANY;
        over_distances += x == 0 ? 0 : (distance[x] - OF_MANY) * (distance[x] - OF_MANY) / (double)OF_MANY;
    }
    cr_expect(over_keys < 1.3 * MANY && over_distances < 1.3 * MANY, "%g %g", over_keys, over_distances);
}

/* What the rule of docs/masks.md gives, and has always given. test_mask.c follows the rule itself. */
Test(mask_make, random_blocks_draws_the_same_for_ever)
{
    static const char *const known[] = {"#...#.#.#...#..#....", ".#.#..#......#..#.#.",
                                        "###.......#..##....."};
    unsigned char drawn[20 * 20];

    read_blocks(drawn, 20, 5, 42);
    for (int i = 0; i < 3; i++) {
        char text[21] = "";

        for (int j = 0; j < 20; j++)
            text[j] = drawn[i * 20 + j] ? '#' : '.';
        cr_expect(eq(str, text, (char *)known[i]));
    }
}
