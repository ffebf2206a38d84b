/* test_mask_text.c - masks as text: what is printed, what is refused and where. What they mean is
 * test_mask.c. */
#include "tests/mask_help.h"

#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hra_domain domain_of(int batch, int heads, int64_t tokens, int64_t a, int64_t b)
{
    hra_domain d = HRA_DOMAIN_INIT;

    d.batch = batch;
    d.heads = heads;
    d.tokens = tokens;
    d.grid[0] = a;
    d.grid[1] = b;
    return d;
}

/* ---- Printing --------------------------------------------------------------------------------------- */

struct rewritten {
    char text[120], printed[150];
};

/* Domain: 2 sequences, 8 heads, 16 tokens on a 4 x 4 grid. */
ParameterizedTestParameters(mask_text, prints_canonical_text)
{
    static struct rewritten rows[] = {
        {" full\n", "full"},
        {"window( 4095 , 0 )", "window(4095,0)"},
        {"window(-,-1)", "window(-,-1)"},
        {"window(9223372036854775807,-9223372036854775808)", "window(-,-9223372036854775808)"},
        {"window(0007,0)", "window(7,0)"},
        {"neighbourhood(3,99)", "neighbourhood(3,4)"},
        {"neighbourhood(3,3 ; 1,1)", "neighbourhood(3,3)"},
        {"neighbourhood(3,3;1,2)", "neighbourhood(3,3; 1,2)"},
        {"grid(3,99)", "grid(3,99)"},
        {"docs(1,2 , 13)", "docs(1,2,13)"},
        {"dilated(8,2)", "dilated(8,2)"},
        {"dilated(8,2,0)", "dilated(8,2)"},
        {"dilated ( 8 , 2 , 0 , keys )", "dilated(8,2)"},
        {"dilated(8,2,1,keys)", "dilated(8,2,1)"},
        {"dilated(8,2,head)", "dilated(8,2,head)"},
        {"dilated(8,2,head,both)", "dilated(8,2,head,both)"},
        {"dilated(8,2,0,both)", "dilated(8,2,0,both)"},
        {"dilated(99,98,97,both)", "dilated(99,98,97,both)"},
        {"dilated(8,2,0,residue)", "dilated(8,2,0,residue)"},
        {"global( 3 )", "global(3)"},
        {"blocks(4;2:3 1 1;0:0;2:0)", "blocks(4; 0:0; 2:0 1 3)"},
        {"blocks(16)", "blocks(16)"},
        {"local_blocks(4,1)", "local_blocks(4,1)"},
        {"strided_blocks(1,2,0)", "strided_blocks(1,2,0)"},
        {"global_blocks(1,0,9223372036854775807)", "global_blocks(1,0,9223372036854775807)"},
        {"random_blocks(2,99,18446744073709551615)", "random_blocks(2,99,18446744073709551615)"},
        {"random_blocks(2,0,0)", "random_blocks(2,0,0)"},
        {"hierarchical_blocks(1,2,62)", "hierarchical_blocks(1,2,62)"},
        {"slots(hilbert;window(3,0))", "slots(hilbert; window(3,0))"},
        {"slots( boxes:2x2 ; causal|full )", "slots(boxes:2x2; causal | full)"},
        {"slots( residues:04:2:boxes:2x2 ; full)", "slots(residues:4:2:boxes:2x2; full)"},
        {"slots(residues:4:2:identity; full)", "slots(residues:4:2; full)"},
        {"mix(full;causal)", "mix(full; causal)"},
        {"mix(full|causal)", "full | causal"},
        {"causal&mix(full;causal)", "causal & mix(full; causal)"},
        {"longnet(4:1,8:2)", "mix(dilated(4,1,head,both); dilated(8,2,head,both))"},
        {"longnet(4:1)", "dilated(4,1,head,both)"},
        {"! full", "!full"},
        {"!!full", "full"},
        {"!(!(!full))", "!full"},
        {"!(full&causal)", "!(full & causal)"},
        {"!(full|causal)&full", "!(full | causal) & full"},
        {"!(full)&causal", "!full & causal"},
        {"causal&full|full", "causal & full | full"},
        {"causal&(full|full)", "causal & (full | full)"},
        {"(causal&full)|full", "causal & full | full"},
        {"(((causal)))", "causal"},
        {"full|(full|(causal|full))", "full | full | causal | full"},
        {"(full&causal)&(full&full)", "full & causal & full & full"},
        {"heads(4-7:causal;0-3:full|causal)", "heads(0-3: full | causal; 4-7: causal)"},
        {"heads(7:causal;0-0:full;1-6:window(1,0))", "heads(0: full; 1-6: window(1,0); 7: causal)"},
        {"heads(0-7:full)&causal", "heads(0-7: full) & causal"},
        {"heads(0-7:heads(0-3:full;4-7:causal))", "heads(0-7: heads(0-3: full; 4-7: causal))"},
        {"heads(0-7:mix(full;causal))", "heads(0-7: mix(full; causal))"},
        {"batches(1:causal;0:!full)", "batches(0: !full; 1: causal)"},
        {"batches(0-1:heads(0-7:full))", "batches(0-1: heads(0-7: full))"},
    };
    return cr_make_param_array(struct rewritten, rows, sizeof(rows) / sizeof(rows[0]));
}

/* What is printed parses, and prints the same again. */
ParameterizedTest(struct rewritten *r, mask_text, prints_canonical_text)
{
    const hra_domain d = domain_of(2, 8, 0, 4, 4);
    hra_mask *m = parse(&d, NULL, r->text);
    char *text = print(m);

    cr_expect(eq(str, text, r->printed));
    hra_mask *again = parse(&d, NULL, text);
    free(text);
    text = print(again);
    cr_expect(eq(str, text, r->printed));
    cr_expect(hra_mask_hash(m) == hra_mask_hash(again), "%s", text);
    free(text);
    hra_mask_destroy(m);
    hra_mask_destroy(again);
}

Test(mask_text, print_cuts_to_fit)
{
    const hra_domain d = domain_of(1, 1, 16, 0, 0);
    hra_mask *m = parse(&d, NULL, "window(12,3)");
    char out[20];

    for (size_t bytes = 0; bytes <= 14; bytes++) {
        memset(out, '~', sizeof(out));
        cr_expect(eq(sz, hra_mask_print(m, out, bytes), 12));
        if (bytes > 0)
            cr_expect(strncmp(out, "window(12,3)", bytes - 1) == 0 &&
                      strlen(out) == (bytes > 12 ? 12 : bytes - 1));
        cr_expect(out[bytes > 13 ? 13 : bytes] == '~', "%zu bytes", bytes);
    }
    cr_expect(eq(sz, hra_mask_print(m, NULL, 0), 12));
    cr_expect(eq(sz, hra_mask_print(NULL, out, 4), 0));
    cr_expect(eq(int, out[0], 0));
    hra_mask_destroy(m);
}

/* Query 1 and key 2 of 4 tokens; blocks(4) allows nothing, causal not this pair. */
Test(mask_text, precedence)
{
    static const struct {
        const char *text;
        int allows;
    } rows[] = {
        {"full | full & blocks(4)", 1},
        {"(full | full) & blocks(4)", 0},
        {"!causal | full & blocks(4)", 1},
        {"!causal & causal", 0},
        {"!(causal & causal)", 1},
        {"!blocks(4) & full", 1},
        {"!full | full", 1},
        {"!(full | full)", 0},
        {"!!causal", 0},
        {"!!!causal", 1},
    };
    const hra_domain d = domain_of(1, 1, 4, 0, 0);

    for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++) {
        hra_mask *m = parse(&d, NULL, rows[n].text);
        cr_expect(eq(int, hra_mask_allows(m, 0, 0, 1, 2), rows[n].allows), "%s", rows[n].text);
        hra_mask_destroy(m);
    }
}

/* ---- The orders of slots() ---------------------------------------------------------------------------- */

/* slots(M) reads the order that the parser was given; it is printed with its name, if it has one. */
Test(mask_text, slots_reads_the_order_that_it_is_given)
{
    static const char *const names[] = {"identity", "hilbert", "morton", "snake", "boxes:2x2", NULL};
    const hra_domain d = domain_of(1, 1, 0, 4, 4);
    int64_t token[16];

    for (int s = 0; s < 16; s++)
        token[s] = (5 * s + 3) % 16;
    for (int n = 0; n < 6; n++) {
        char expected[60] = "slots(window(1,0))";
        hra_order *order = NULL;

        if (names[n] == NULL) {
            cr_assert(eq(int, hra_order_permutation(&order, &d, token), HRA_OK));
        } else {
            order = order_of(&d, names[n]);
            snprintf(expected, sizeof(expected), "slots(%s; window(1,0))", names[n]);
        }
        hra_mask *m = parse(&d, order, "slots(window(1,0))");
        char *text = print(m);
        cr_expect(eq(str, text, expected));
        const int64_t *slot = hra_order_token_to_slot(order);
        hra_mask *again = parse(&d, names[n] == NULL ? order : NULL, text);
        cr_expect(hra_mask_hash(m) == hra_mask_hash(again), "%s", text);
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++)
                cr_assert(hra_mask_count(again, 0, 0, i, j) ==
                          (slot[j] == slot[i] || slot[j] == slot[i] - 1));
        free(text);
        hra_mask_destroy(again);
        hra_order_destroy(order); /* the mask keeps what it needs of it */
        cr_expect(hra_mask_allows(m, 0, 0, 7, 7));
        hra_mask_destroy(m);
    }
}

/* An order that the text names is that one, whatever the parser is given. */
Test(mask_text, slots_reads_the_order_that_it_names)
{
    const hra_domain d = domain_of(1, 1, 0, 4, 4);
    hra_order *snake = order_of(&d, "snake"), *hilbert = order_of(&d, "hilbert");
    hra_mask *m = parse(&d, snake,
                        "slots(hilbert; window(0,0)) & slots(window(1,0)) | slots(snake; window(0,1))"),
             *same = parse(&d, hilbert,
                           "slots(window(0,0)) & slots(snake; window(1,0)) | slots(snake; window(0,1))");

    cr_expect(hra_mask_hash(m) == hra_mask_hash(same));
    hra_mask_destroy(m);
    hra_mask_destroy(same);
    hra_order_destroy(snake);
    hra_order_destroy(hilbert);
}

Test(mask_text, at_most_four_orders)
{
    const hra_domain d = domain_of(1, 1, 0, 8, 8);
    hra_mask *m =
        parse(&d, NULL,
              "slots(hilbert; full) | slots(morton; full) | slots(snake; full) | slots(identity; full)"
              " | slots(snake; causal)");
    hra_mask_destroy(m);
    m = NULL;
    cr_expect(eq(int,
                 hra_mask_parse(&m, &d, NULL,
                                "slots(hilbert; full) | slots(morton; full) | slots(snake; full)"
                                " | slots(identity; full) & slots(boxes:2x2; full)"),
                 HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "more than 4 different orders") != NULL, "'%s'", hra_last_error());
    cr_expect(m == NULL);
}

/* ---- Wrong texts ------------------------------------------------------------------------------------ */

struct wrong {
    char text[100], says[120];
};

/* Domain: 2 sequences, 8 heads, 16 tokens on a 4 x 4 grid; no order. */
ParameterizedTestParameters(mask_text, refuses)
{
    static struct wrong rows[] = {
        {"", "character 1: expected a mask: full, causal"},
        {"   ", "character 4: expected a mask"},
        {"casual",
         "character 1: expected a mask: full, causal, window, grid, neighbourhood, docs, dilated, "},
        {"casual", "'(', found 'casual'"},
        {"Full", "found 'Full'"},
        {"full2", "character 1: expected a mask"},
        {"full full", "character 6: expected '&', '|' or the end of the text after a mask, found 'full'"},
        {"full)", "character 5: expected '&', '|' or the end of the text after a mask, found ')'"},
        {"full &", "character 7: expected a mask"},
        {"| full", "character 1: expected a mask"},
        {"full && full", "character 7: expected a mask"},
        {"full !causal", "character 6: expected '&', '|' or the end of the text after a mask, found '!'"},
        {"!", "character 2: expected a mask"},
        {"!&full", "character 2: expected a mask"},
        {"(full",
         "character 6: expected '&', '|' or ')' after a mask in parentheses, found the end of the text"},
        {"()", "character 2: expected a mask"},
        {"full & \x01", "'(', found the byte 0x01"},
        {"window", "character 7: expected '(' after window, found the end of the text"},
        {"window()", "character 8: expected a number of tokens or '-', found ')'"},
        {"window(3)", "character 9: expected ',' after the left side of the window, found ')'"},
        {"window(3 4)", "character 10: expected ',' after the left side of the window, found '4'"},
        {"window(3,x)", "character 10: expected a number of tokens or '-', found 'x'"},
        {"window(3,0x)", "character 11: expected ')' after the right side of the window, found 'x'"},
        {"window(3,+1)", "character 10: expected a number of tokens or '-', found '+'"},
        {"window(- 5,1)", "character 10: expected ',' after the left side of the window, found '5'"},
        {"window(--5,1)", "character 9: expected ',' after the left side"},
        {"window(9223372036854775808,0)", "character 8: the number is too large for 64 bits"},
        {"window(0,-9223372036854775809)", "character 10: the number is too large for 64 bits"},
        {"window(0,99999999999999999999999)", "character 10: the number is too large for 64 bits"},
        {"grid(1)",
         "character 7: expected ',' after radius 1 of 2, the axes of the domain's grid, found ')'"},
        {"grid(1,2,3)",
         "character 9: expected ')' after radius 2 of 2, the axes of the domain's grid, found ','"},
        {"grid(-1,2)", "character 6: expected a radius, found '-'"},
        {"neighbourhood(0,2)", "character 15: expected an extent from 1 to 9223372036854775807, found 0"},
        {"neighbourhood(2,2", "')' after extent 2 of 2"},
        {"neighbourhood(2;2)", "character 16: expected ',' after extent 1 of 2"},
        {"neighbourhood(3,3; 1)", "character 21: expected ',' after stride 1 of 2"},
        {"neighbourhood(3,3; 1,1,1)", "character 23: expected ')' after stride 2 of 2"},
        {"neighbourhood(3,3; 0,1)", "character 20: expected a stride from 1 to 3, found 0"},
        {"neighbourhood(3,2; 3,3)", "character 22: expected a stride from 1 to 2, found 3"},
        {"docs()", "character 6: expected the length of a document, found ')'"},
        {"docs(4,0,12)", "character 8: expected the length of a document from 1 to 16, found 0"},
        {"docs(0,16)", "character 6: expected the length of a document from 1 to 16, found 0"},
        {"docs(17)", "character 6: expected the length of a document from 1 to 16, found 17"},
        {"full & docs(4,4)", "character 8: docs mask: the 2 lengths add up to 8, the domain has 16 tokens"},
        {"docs(10,10)", "character 1: docs mask: the first 2 lengths add up to more than the 16 tokens"},
        {"docs(4;12)", "character 7: expected ',' or ')' after the length of a document, found ';'"},
        {"docs(16,)", "character 9: expected the length of a document"},
        {"dilated", "character 8: expected '(' after dilated"},
        {"dilated()", "character 9: expected the tokens of a segment, found ')'"},
        {"dilated(8)", "character 10: expected ',' after the tokens of a segment, found ')'"},
        {"dilated(0,2)",
         "character 9: expected the tokens of a segment from 1 to 9223372036854775807, found 0"},
        {"dilated(8,0)", "character 11: expected the rate from 1 to 9223372036854775807, found 0"},
        {"dilated(8,9223372036854775808)", "character 11: the number is too large for 64 bits"},
        {"dilated(8,2,2)", "character 13: expected an offset or 'head' from 0 to 1, found 2"},
        {"dilated(8,2,-1)", "character 13: expected an offset or 'head', found '-'"},
        {"dilated(8,2,heads)", "character 13: expected an offset or 'head', found 'heads'"},
        {"dilated(8,2,)", "character 13: expected an offset or 'head', found ')'"},
        {"dilated(8,2,keys)", "character 13: expected an offset or 'head', found 'keys'"},
        {"dilated(8,2,0,)", "character 15: expected the mode keys, both or residue, found ')'"},
        {"dilated(8,2,0,rows)", "character 15: expected the mode keys, both or residue, found 'rows'"},
        {"dilated(8,2,0,both,1)", "character 19: expected ')' after the mode, found ','"},
        {"dilated(8,2,1,residue)",
         "character 1: dilated mask: offset is 1, mode residue takes offset 0 only"},
        {"dilated(8,2,head,residue)",
         "character 1: dilated mask: offset is the head, mode residue takes offset 0 only"},
        {"global()", "character 8: expected the number of global tokens, found ')'"},
        {"global(0)",
         "character 8: expected the number of global tokens from 1 to 9223372036854775807, found 0"},
        {"global(1,2)", "character 9: expected ')' after the number of global tokens, found ','"},
        {"blocks()", "character 8: expected the tokens of a block, found ')'"},
        {"blocks(0; 0:0)", "character 8: expected the tokens of a block from 1 to"},
        {"blocks(4, 0:0)", "character 9: expected ';' or ')' after the tokens of a block, found ','"},
        {"blocks(4; 4:0)", "character 11: expected a query block from 0 to 3, found 4"},
        {"blocks(4; 0:0 1 7)", "character 17: expected a key block from 0 to 3, found 7"},
        {"blocks(4; 0 0)", "character 13: expected ':' after the query block, found '0'"},
        {"blocks(4; 0:)", "character 13: expected a key block, found ')'"},
        {"blocks(4; 0:0;)", "character 15: expected a query block, found ')'"},
        {"blocks(4; 0:0, 1)", "character 14: expected a key block, ';' or ')' after a key block, found ','"},
        {"local_blocks(0,1)", "character 14: expected the tokens of a block from 1 to"},
        {"local_blocks(4)", "character 15: expected ',' after the tokens of a block"},
        {"local_blocks(4,-1)", "character 16: expected the width in blocks, found '-'"},
        {"local_blocks(4,99999999999999999999)", "character 16: the number is too large for 64 bits"},
        {"strided_blocks(4,0,1)",
         "character 18: expected the stride in blocks from 1 to 9223372036854775807, found 0"},
        {"strided_blocks(0,1,1)", "character 16: expected the tokens of a block from 1 to"},
        {"strided_blocks(4,1)", "character 19: expected ',' after the stride in blocks, found ')'"},
        {"global_blocks(4,1,1,1)", "character 20: expected ')' after the width in blocks, found ','"},
        {"global_blocks(0,1,1)", "character 15: expected the tokens of a block from 1 to"},
        {"random_blocks(4,1)", "character 18: expected ',' after the number of blocks to draw, found ')'"},
        {"random_blocks(0,1,1)", "character 15: expected the tokens of a block from 1 to"},
        {"random_blocks(4,1,-1)", "character 19: expected the seed, found '-'"},
        {"random_blocks(4,1,18446744073709551616)", "character 19: the number is too large for 64 bits"},
        {"random_blocks(4,9223372036854775808,1)", "character 17: the number is too large for 64 bits"},
        {"hierarchical_blocks(4,1,0)", "character 25: expected the number of levels from 1 to 62, found 0"},
        {"hierarchical_blocks(4,1,63)", "character 25: expected the number of levels from 1 to 62, found 63"},
        {"hierarchical_blocks(0,1,1)", "character 21: expected the tokens of a block from 1 to"},
        {"slots(full)", "character 1: slots() names no order and the parser was given none"},
        {"slots()", "character 1: slots() names no order and the parser was given none"},
        {"slots(;full)", "character 1: slots() names no order"},
        {"slots(hilbert)", "character 1: slots() names no order"},
        {"slots(hilbert;)", "character 15: expected a mask"},
        {"slots(gilbert; full)", "character 7: order: no order is named 'gilbert'"},
        {"full | slots(boxes:5x1; full)", "character 14: order boxes: side 0 of the box of 5 x 1"},
        {"slots(boxes:2; full)", "character 7: order: 'boxes:2' is not of the form boxes:AxB"},
        {"slots(residues:2; full)", "character 7: order: 'residues:2' is not of the form residues:S:r"},
        {"slots(residues:2:0; full)", "character 7: order residues: the segment is 2 and the rate 0"},
        {"slots(boxes:2x2x2; full)", "character 7: order boxes: a box of 2 x 2 x 2 has 3 axes"},
        {"slots(hilbert; full",
         "character 20: expected '&', '|' or ')' after a mask in slots(), found the end"},
        {"slots(hilbert; full; full)",
         "character 20: expected '&', '|' or ')' after a mask in slots(), found ';'"},
        {"full & slots(hilbert; grid(1,1))",
         "character 8: slots mask: the mask has a grid() or neighbourhood() in it"},
        {"slots(hilbert; !neighbourhood(1,1) | full)",
         "character 1: slots mask: the mask has a grid() or neighbourhood() in it"},
        {"slots(hilbert; full & slots(hilbert; full))",
         "character 1: slots mask: the mask has a slots() in it already"},
        {"mix()", "character 5: expected a mask"},
        {"mix(full;)", "character 10: expected a mask"},
        {"mix(full, full)", "character 9: expected '&', '|', ';' or ')' after a mask in mix(), found ','"},
        {"mix(full; mix(full; full))", "character 1: mix mask: mask 1 is a mixture"},
        {"mix(causal & longnet(4:1, 8:2))", "character 1: mix mask: mask 0 is a mixture"},
        {"mix(full; heads(0-7: mix(full; full)))", "character 1: mix mask: mask 1 is a mixture"},
        {"full & !mix(full; causal)", "character 8: not mask: the mask is a mixture"},
        {"full & !slots(hilbert; mix(full; causal))", "character 8: not mask: the mask is a mixture"},
        {"full | mix(full; causal)", "character 1: or mask: mask 1 is a mixture"},
        {"full & (causal & mix(full; full) | full)", "character 9: or mask: mask 0 is a mixture"},
        {"mix(full; full) & causal & mix(full; full)",
         "character 1: and mask: masks 0 and 2 are both mixtures"},
        {"longnet()", "character 9: expected the tokens of a segment, found ')'"},
        {"longnet(4)", "character 10: expected ':' after the tokens of a segment, found ')'"},
        {"longnet(4:)", "character 11: expected the rate, found ')'"},
        {"longnet(4:0)", "character 11: expected the rate from 1 to 9223372036854775807, found 0"},
        {"longnet(0:1)",
         "character 9: expected the tokens of a segment from 1 to 9223372036854775807, found 0"},
        {"longnet(4:1; 8:2)", "character 12: expected ',' or ')' after the rate, found ';'"},
        {"longnet(4:1,)", "character 13: expected the tokens of a segment, found ')'"},
        {"longnet(4:99999999999999999999)", "character 11: the number is too large for 64 bits"},
        {"heads(0-7 full)", "character 11: expected ':' after the heads, found 'full'"},
        {"heads(0: full)", "character 1: heads mask: head 1 of 8 is in no range"},
        {"heads(0-7: full; 3: full)", "character 1: heads mask: head 3 is in two ranges, 0 to 7 and 3 to 3"},
        {"heads(0-3: full; 5-7: full)", "head 4 of 8 is in no range"},
        {"heads(0-8: full)", "character 9: expected the last head of a range from 0 to 7, found 8"},
        {"heads(8: full)", "character 7: expected a head from 0 to 7, found 8"},
        {"heads(3-2: full)", "character 9: expected the last head of a range from 3 to 7, found 2"},
        {"heads(0,7: full)", "character 8: expected '-' or ':' after the head, found ','"},
        {"heads(0-7: full",
         "character 16: expected '&', '|', ';' or ')' after a mask in heads(), found the end"},
        {"heads(0-7: full;)", "character 17: expected a head, found ')'"},
        {"heads()", "character 7: expected a head, found ')'"},
        {"batches()", "character 9: expected a sequence, found ')'"},
        {"batches(0: full)", "character 1: batches mask: sequence 1 of 2 is in no range"},
        {"batches(0-2: full)", "character 11: expected the last sequence of a range from 0 to 1, found 2"},
        {"batches(0-1: full",
         "character 18: expected '&', '|', ';' or ')' after a mask in batches(), found the end"},
        {"batches(0,1: full)", "character 10: expected '-' or ':' after the sequence, found ','"},
    };
    return cr_make_param_array(struct wrong, rows, sizeof(rows) / sizeof(rows[0]));
}

ParameterizedTest(struct wrong *w, mask_text, refuses)
{
    const hra_domain d = domain_of(2, 8, 0, 4, 4);
    hra_mask *m = NULL;

    cr_expect(eq(int, hra_mask_parse(&m, &d, NULL, w->text), HRA_ERR_ARG), "%s", w->text);
    cr_expect(strstr(hra_last_error(), w->says) != NULL, "%s: '%s' does not say '%s'", w->text,
              hra_last_error(), w->says);
    cr_expect(strncmp(hra_last_error(), "mask: character ", 16) == 0, "%s: '%s'", w->text, hra_last_error());
    cr_expect(m == NULL, "nothing is written on failure");
}

Test(mask_text, refuses_a_grid_mask_without_a_grid)
{
    const hra_domain d = domain_of(1, 1, 16, 0, 0);
    hra_mask *m = NULL;

    cr_expect(eq(int, hra_mask_parse(&m, &d, NULL, "full & grid(1,1)"), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "character 8: grid needs a domain with a grid") != NULL, "'%s'",
              hra_last_error());
    cr_expect(eq(int, hra_mask_parse(&m, &d, NULL, "neighbourhood(1,1; 1,1)"), HRA_ERR_ARG));
    cr_expect(strstr(hra_last_error(), "character 1: neighbourhood needs a domain with a grid") != NULL,
              "'%s'", hra_last_error());
    cr_expect(m == NULL);
}

/* An order for other tokens, or on a grid that the domain does not have. */
Test(mask_text, refuses_an_order_that_does_not_fit)
{
    const hra_domain d = domain_of(1, 1, 0, 4, 4), longer = domain_of(1, 1, 17, 0, 0),
                     line = domain_of(1, 1, 16, 0, 0);
    hra_order *orders[] = {order_of(&longer, "identity"), order_of(&line, "hilbert")};
    hra_mask *m = NULL;

    for (int n = 0; n < 2; n++) {
        cr_expect(eq(int, hra_mask_parse(&m, &d, orders[n], "full & slots(causal)"), HRA_ERR_ARG), "order %d",
                  n);
        cr_expect(strstr(hra_last_error(), "mask: character 8: slots mask: ") != NULL, "'%s'",
                  hra_last_error());
        hra_mask *unread =
            parse(&d, orders[n], "slots(hilbert; causal)"); /* one that is not asked for is not looked at */
        hra_mask_destroy(unread);
        hra_order_destroy(orders[n]);
    }
    cr_expect(m == NULL);
}

/* ---- Deep and long texts ------------------------------------------------------------------------------ */

/* `begin` count times, a mask, `end` count times */
static char *nested(const char *begin, const char *end, int count)
{
    char *text = calloc((strlen(begin) + strlen(end)) * (size_t)count + 8, 1), *at = text;

    for (int n = 0; n < count; n++)
        at = stpcpy(at, begin);
    at = stpcpy(at, "full");
    for (int n = 0; n < count; n++)
        at = stpcpy(at, end);
    return text;
}

Test(mask_text, refuses_deep_nesting, .timeout = 60)
{
    static const char *const around[][2] = {
        {"(", ")"},
        {"!", ""},
        {"heads(0:", ")"},
        {"batches(0:", ")"},
        {"(full|full&", ")"},
        {"mix(", ")"},
        {"!(", ")"},
        {"mix(full; ", ")"},
        {"slots(identity; ", ")"},
        {"slots(hilbert; !", ")"},
        {"full & !(", ")"},
        {"heads(0: !", ")"},
        {"slots(", ")"},
    };
    const hra_domain d = domain_of(1, 1, 4, 0, 0);
    hra_order *order = order_of(&d, "snake");
    hra_mask *m = NULL;

    for (size_t n = 0; n < sizeof(around) / sizeof(around[0]); n++) {
        char *text = nested(around[n][0], around[n][1], 10000);
        cr_expect(eq(int, hra_mask_parse(&m, &d, order, text), HRA_ERR_ARG), "%.20s", text);
        cr_expect(strstr(hra_last_error(), "mask: character ") != NULL &&
                      strstr(hra_last_error(), "200 deep") != NULL,
                  "%.20s: '%s'", text, hra_last_error());
        free(text);
        text = nested(around[n][0], "", 10000); /* never closed */
        cr_expect(eq(int, hra_mask_parse(&m, &d, order, text), HRA_ERR_ARG), "%.20s", text);
        free(text);
    }
    hra_order_destroy(order);
    cr_expect(m == NULL);
}

Test(mask_text, nests_as_deep_as_it_says)
{
    static const char *const around[][2] = {
        {"(", ")"}, {"!", ""}, {"heads(0:", ")"}, {"batches(0:", ")"}, {"mix(", ")"}};
    const hra_domain d = domain_of(1, 1, 4, 0, 0);
    hra_mask *m = NULL;

    for (size_t n = 0; n < sizeof(around) / sizeof(around[0]); n++) {
        char *text = nested(around[n][0], around[n][1], 201), says[40];

        snprintf(says, sizeof(says), "character %zu: ", 200 * strlen(around[n][0]) + 1);
        cr_expect(eq(int, hra_mask_parse(&m, &d, NULL, text), HRA_ERR_ARG), "%.20s", text);
        cr_expect(strstr(hra_last_error(), says) != NULL, "%.20s: '%s'", text, hra_last_error());
        free(text);
        text = nested(around[n][0], around[n][1], 199); /* a mask in heads() is itself one level */
        hra_mask *fits = parse(&d, NULL, text);
        free(text);
        hra_mask_destroy(fits);
    }

    /* long is not deep */
    char *text = nested("full & !causal | ", "", 20000);
    m = parse(&d, NULL, text);
    cr_expect(eq(int, hra_mask_allows(m, 0, 0, 0, 3), 1));
    hra_mask_destroy(m);
    free(text);
}
