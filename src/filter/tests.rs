//! The rules of filters, one by one, and conditions against a naive evaluation of the same.

use std::borrow::Cow;
use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;
use crate::format::batch::{Batch, BatchBuilder, NewMeta, TagFilterError};

/// A message with these properties and no tag.
struct Properties<'a>(&'a [(&'a str, &'a str)]);

impl Subject for Properties<'_> {
    fn tag(&self) -> Option<&str> {
        None
    }

    fn property(&self, name: &str) -> Option<Cow<'_, str>> {
        let found = self.0.iter().find(|(key, _)| *key == name);
        found.map(|(_, value)| Cow::Borrowed(*value))
    }
}

/// A message with a tag or none.
struct Tagged<'a>(Option<&'a str>);

impl Subject for Tagged<'_> {
    fn tag(&self) -> Option<&str> {
        self.0
    }

    fn property(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }
}

fn sql(text: &str) -> Expression {
    Expression::parse(Language::Sql, text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What is wrong, and the text from there on.
fn fault(text: &str) -> (SqlFault, &str) {
    match Expression::parse(Language::Sql, text) {
        Err(FilterError::Sql(SqlError { at, fault })) => (fault, &text[at..]),
        other => panic!("{text}: {other:?}"),
    }
}

/// `T`, `F` or `?`, for unknown.
fn truth(condition: &str, properties: &[(&str, &str)]) -> char {
    let is_true = |text: &str| sql(text).matches(&Properties(properties));
    let found = [
        is_true(condition),
        is_true(&format!("NOT ({condition})")),
        is_true(&format!("({condition}) IS NULL")),
    ];
    match found {
        [true, false, false] => 'T',
        [false, true, false] => 'F',
        [false, false, true] => '?',
        other => panic!("{condition} is {other:?}"),
    }
}

/// Each condition with its truth.
fn assert_truths(properties: &[(&str, &str)], truths: &[(&str, char)]) {
    for (condition, wanted) in truths {
        assert_eq!(truth(condition, properties), *wanted, "{condition}");
    }
}

fn tags(text: &str) -> Expression {
    Expression::parse(Language::Tags, text).unwrap()
}

#[test]
fn flt_1_tags_are_compared_as_text_so_that_equal_hashes_do_not_leak() {
    // In Java both strings have the hash 2112.
    let filter = tags("Aa");
    assert!(filter.matches(&Tagged(Some("Aa"))));
    assert!(!filter.matches(&Tagged(Some("BB"))));
    assert!(!filter.matches(&Tagged(Some("aa"))), "case counts");
}

#[test]
fn flt_2_untagged_messages_match_only_all() {
    for all in ["", "*", "  * "] {
        assert!(tags(all).matches(&Tagged(None)), "{all:?}");
        assert!(tags(all).matches(&Tagged(Some("a"))), "{all:?}");
    }
    assert!(!tags("a").matches(&Tagged(None)));
}

#[test]
fn flt_3_tags_have_limits() {
    let many = (0..1025).map(|n| n.to_string()).collect::<Vec<_>>().join("||");
    let error = Expression::parse(Language::Tags, &many);
    assert_eq!(
        error,
        Err(FilterError::Tags(TagFilterError::TooManyTags { limit: 1024, found: 1025 }))
    );
    let error = Expression::parse(Language::Tags, &"a".repeat(1 << 20));
    assert_eq!(
        error,
        Err(FilterError::Tags(TagFilterError::TooLong { limit: 32_768, found: 1 << 20 }))
    );
}

#[test]
fn several_tags_mean_each_of_them_however_they_are_spaced() {
    let filter = tags(" a||b  || a ");
    for (tag, wanted) in [("a", true), ("b", true), ("c", false), ("a ", false), ("a||b", false)] {
        assert_eq!(filter.matches(&Tagged(Some(tag))), wanted, "{tag}");
    }
    assert_eq!(filter, tags("b||a"));
    assert_eq!(filter.to_string(), "a || b");
    assert_eq!(tags("").to_string(), "*");
}

#[test]
fn operators_bind_as_in_the_table_of_the_room() {
    for (text, meant) in [
        ("a = 1 OR b = 2 AND c = 3", "(a = 1) OR ((b = 2) AND (c = 3))"),
        ("a = 1 AND b = 2 OR c = 3", "((a = 1) AND (b = 2)) OR (c = 3)"),
        ("a = b > 3", "a = (b > 3)"),
        ("a > 1 = b < 2", "(a > 1) = (b < 2)"),
        ("a = 1 = b", "(a = 1) = b"),
        ("a > 1 IS NULL", "(a > 1) IS NULL"),
        ("NOT a = 1", "(NOT a) = 1"),
        ("NOT a OR b", "(NOT a) OR b"),
        ("a BETWEEN 1 AND 2 AND b", "(a BETWEEN 1 AND 2) AND b"),
        ("- a = 1", "(-a) = 1"),
        ("a NOT IN ('x') AND b NOT CONTAINS 'y'", "(a NOT IN ('x')) AND (b NOT CONTAINS 'y')"),
        ("a AND (b AND c)", "a AND ((b AND c))"),
    ] {
        assert_eq!(sql(text), sql(meant), "{text}");
    }
    assert_ne!(sql("a OR b AND c"), sql("(a OR b) AND c"));
    assert_ne!(sql("NOT a = TRUE AND b"), sql("NOT (a = TRUE AND b)"));
}

#[test]
fn keywords_are_in_any_case_and_properties_are_not() {
    assert_eq!(
        sql("a iS nOt nUll aNd b beTween 1 AND 2"),
        sql("a IS NOT NULL AND b BETWEEN 1 AND 2")
    );
    assert_ne!(sql("a"), sql("A"));
    let properties = [("a", "1"), ("_$9", "2"), ("$", "3"), ("Orders", "4")];
    assert_truths(
        &properties,
        &[("A = 1", '?'), ("_$9 = 2", 'T'), ("$ = 3", 'T'), ("Orders = 4", 'T')],
    );
}

#[test]
fn comments_and_spaces_are_nothing() {
    let text = "-- what\na/**/= /* ' -- * */\t\r\n\x0c1 -- end";
    assert_eq!(sql(text), sql("a=1"));
    assert_eq!(sql(text).to_string(), text, "told as it was written");
    // A minus twice is a comment.
    assert_eq!(fault("a = --5"), (unexpected("a property, a literal or `(`", "the end"), ""));
    assert_eq!(sql("a = - -5"), sql("a = 5"));
}

#[test]
fn a_doubled_quote_is_one_quote() {
    let properties = [("a", "it's"), ("b", ""), ("c", "'")];
    assert_truths(&properties, &[("a = 'it''s'", 'T'), ("b = ''", 'T'), ("c = ''''", 'T')]);
    assert_truths(&[("a", "ü€\n")], &[("a = 'ü€\n'", 'T'), ("a ENDSWITH '€\n'", 'T')]);
}

#[test]
fn numbers_are_written_in_many_ways() {
    let properties = [("a", "5"), ("b", "0.5"), ("c", "0")];
    let mut truths = Vec::new();
    for number in ["5", "5L", "5l", "+5", "5.", "5.0", "05.0", "5e0", "50E-1", "0.5e+1"] {
        truths.push((format!("a = {number}"), 'T'));
    }
    for number in [".5", "0.5", "5E-1"] {
        truths.push((format!("b = {number}"), 'T'));
    }
    for number in ["0", "0L", "0.0", "-0", "00.0"] {
        truths.push((format!("c = {number}"), 'T'));
    }
    for (condition, wanted) in &truths {
        assert_eq!(truth(condition, &properties), *wanted, "{condition}");
    }
}

#[test]
fn logic_has_three_values() {
    let properties = [("t", "true"), ("f", "no")];
    // `u` is not there.
    let values = [("t", 'T'), ("f", 'F'), ("u", '?'), ("NULL", '?'), ("TRUE", 'T'), ("FALSE", 'F')];
    for (a, left) in values {
        let not = match left {
            'T' => 'F',
            'F' => 'T',
            _ => '?',
        };
        assert_eq!(truth(&format!("NOT {a}"), &properties), not, "NOT {a}");
        for (b, right) in values {
            let and = match (left, right) {
                ('F', _) | (_, 'F') => 'F',
                ('T', 'T') => 'T',
                _ => '?',
            };
            let or = match (left, right) {
                ('T', _) | (_, 'T') => 'T',
                ('F', 'F') => 'F',
                _ => '?',
            };
            assert_eq!(truth(&format!("{a} AND {b}"), &properties), and, "{a} AND {b}");
            assert_eq!(truth(&format!("{a} OR {b}"), &properties), or, "{a} OR {b}");
        }
    }
}

#[test]
fn comparison_of_a_missing_property_is_unknown() {
    for condition in [
        "a = 'x'",
        "a <> 'x'",
        "a = 1",
        "a <> 1",
        "a < 1",
        "a >= 1",
        "1 > a",
        "a = TRUE",
        "a = b",
        "a < b",
        "a BETWEEN 1 AND 2",
        "a NOT BETWEEN 1 AND 2",
        "b BETWEEN a AND 2",
        "a IN ('x')",
        "a NOT IN ('x')",
        "-a = 1",
        "a",
        "NOT a",
    ] {
        assert_eq!(truth(condition, &[("b", "1")]), '?', "{condition}");
        assert!(!sql(condition).matches(&Properties(&[("b", "1")])), "{condition}: not wanted");
    }
}

#[test]
fn is_null_is_true_or_false_only() {
    let properties = [("a", ""), ("n", "x")];
    assert_truths(
        &properties,
        &[
            ("a IS NULL", 'F'),
            ("a IS NOT NULL", 'T'),
            ("b IS NULL", 'T'),
            ("b IS NOT NULL", 'F'),
            ("NULL IS NULL", 'T'),
            ("'x' IS NULL", 'F'),
            ("3 IS NOT NULL", 'T'),
            ("TRUE IS NULL", 'F'),
            ("(b = 1) IS NULL", 'T'),
            ("(a = 'x') IS NULL", 'F'),
            ("-n IS NULL", 'T'),
            ("b IS NULL IS NULL", 'F'),
        ],
    );
}

#[test]
fn contains_and_its_like_are_false_where_there_is_nothing_to_find() {
    let mut truths = Vec::new();
    for operator in ["CONTAINS", "STARTSWITH", "ENDSWITH"] {
        for not in ["", "NOT "] {
            truths.push((format!("b {not}{operator} 'x'"), 'F'));
            truths.push((format!("a {not}{operator} ''"), 'F'));
        }
    }
    for (condition, wanted) in &truths {
        assert_eq!(truth(condition, &[("a", "abc")]), *wanted, "{condition}");
    }
}

#[test]
fn contains_and_its_like_look_at_bytes() {
    assert_truths(
        &[("a", "abc"), ("e", "")],
        &[
            ("a CONTAINS 'b'", 'T'),
            ("a CONTAINS 'B'", 'F'),
            ("a CONTAINS 'abc'", 'T'),
            ("a CONTAINS 'abcd'", 'F'),
            ("a NOT CONTAINS 'b'", 'F'),
            ("a NOT CONTAINS 'x'", 'T'),
            ("a STARTSWITH 'ab'", 'T'),
            ("a STARTSWITH 'b'", 'F'),
            ("a NOT STARTSWITH 'b'", 'T'),
            ("a ENDSWITH 'bc'", 'T'),
            ("a ENDSWITH 'b'", 'F'),
            ("a NOT ENDSWITH 'b'", 'T'),
            ("e CONTAINS 'x'", 'F'),
            ("e NOT CONTAINS 'x'", 'T'),
            ("'text' CONTAINS 'ex'", 'T'),
        ],
    );
}

#[test]
fn a_bare_property_is_true_if_it_says_so() {
    let properties = [("a", "true"), ("b", "TrUe"), ("c", "1"), ("d", ""), ("e", "false")];
    assert_truths(
        &properties,
        &[
            ("a", 'T'),
            ("b", 'T'),
            ("c", 'F'),
            ("d", 'F'),
            ("e", 'F'),
            ("f", '?'),
            ("NOT c", 'T'),
            ("NOT NOT b", 'T'),
            ("a = TRUE", 'T'),
            ("TRUE = a", 'T'),
            ("c = TRUE", 'F'),
            ("c = FALSE", 'T'),
            ("e <> TRUE", 'T'),
            ("a = (1 = 1)", 'T'),
            ("(a) AND (b)", 'T'),
        ],
    );
}

#[test]
fn a_number_and_text_that_is_none_are_unknown() {
    let properties = [("a", "x"), ("b", ""), ("c", " 3"), ("d", "NaN"), ("e", "0x3"), ("n", "4")];
    for name in ["a", "b", "c", "d", "e"] {
        for condition in
            ["= 3", "<> 3", "< 3", "> 3.5", "BETWEEN 1 AND 5", "< n", "NOT BETWEEN 1 AND 5"]
        {
            let condition = format!("{name} {condition}");
            assert_eq!(truth(&condition, &properties), '?', "{condition}");
        }
    }
    // So is it with literals of unlike types.
    for condition in
        ["'3' = 3", "3 <> '3'", "TRUE = 3", "TRUE = 'true'", "'x' <> FALSE", "(n > 3) = 1"]
    {
        assert_eq!(truth(condition, &properties), '?', "{condition}");
    }
}

#[test]
fn between_includes_both_ends() {
    let mut truths = Vec::new();
    for (value, wanted) in [("0.9", 'F'), ("1", 'T'), ("1.5", 'T'), ("2", 'T'), ("2.1", 'F')] {
        truths.push((value, wanted));
    }
    for (value, wanted) in truths {
        let properties = [("a", value), ("low", "1"), ("high", "2")];
        for condition in ["a BETWEEN 1 AND 2", "a BETWEEN low AND high", "a BETWEEN +1 AND 2.0"] {
            assert_eq!(truth(condition, &properties), wanted, "{value} {condition}");
        }
        let opposite = if wanted == 'T' { 'F' } else { 'T' };
        assert_eq!(truth("a NOT BETWEEN 1 AND 2", &properties), opposite, "{value}");
    }
    assert_truths(
        &[("a", "1"), ("low", "2"), ("high", "0")],
        &[
            ("a BETWEEN low AND high", 'F'),
            ("1 BETWEEN a AND a", 'T'),
            ("-a BETWEEN -2 AND -1", 'T'),
        ],
    );
}

#[test]
fn bounds_in_the_wrong_order_and_null_are_refused() {
    assert_eq!(fault("a BETWEEN 2 AND 1"), (SqlFault::Bounds, "2 AND 1"));
    assert_eq!(fault("a NOT BETWEEN -1 AND -1.5"), (SqlFault::Bounds, "-1 AND -1.5"));
    assert_eq!(fault("a BETWEEN NULL AND 1"), (SqlFault::NullCompared, "NULL AND 1"));
    assert_eq!(fault("a BETWEEN 1 AND NULL"), (SqlFault::NullCompared, "NULL"));
    assert_eq!(sql("a BETWEEN 1 AND 1.0"), sql("a BETWEEN 1 AND 1"));
}

#[test]
fn null_is_compared_by_is_null_alone() {
    assert_eq!(fault("a = NULL"), (SqlFault::NullCompared, "NULL"));
    assert_eq!(fault("NULL <> a"), (SqlFault::NullCompared, "NULL <> a"));
    assert_eq!(fault("a < (NULL)"), (SqlFault::NullCompared, "(NULL)"));
}

#[test]
fn text_and_truth_have_no_order() {
    let no_order = |found| SqlFault::NoOrder { found };
    assert_eq!(fault("a > 'x'"), (no_order("text"), "'x'"));
    assert_eq!(fault("'x' <= a"), (no_order("text"), "'x' <= a"));
    assert_eq!(fault("a < TRUE"), (no_order("TRUE"), "TRUE"));
    assert_eq!(fault("FALSE >= a"), (no_order("FALSE"), "FALSE >= a"));
    assert_eq!(fault("(a = 1) < 2"), (no_order("a condition"), "(a = 1) < 2"));
    assert_eq!(fault("NOT a > 3"), (no_order("a condition"), "NOT a > 3"));
    assert_eq!(fault("a BETWEEN 'a' AND 'b'"), (no_order("text"), "'a' AND 'b'"));
    assert_eq!(fault("1 < 2 < 3"), (no_order("a condition"), "1 < 2 < 3"));
}

#[test]
fn equality_of_text_is_that_of_its_bytes() {
    assert_truths(
        &[("a", "x"), ("b", "X"), ("c", "x"), ("n", "3"), ("m", "3.0")],
        &[
            ("a = 'x'", 'T'),
            ("'x' = a", 'T'),
            ("a = 'X'", 'F'),
            ("a <> 'X'", 'T'),
            ("a = c", 'T'),
            ("a <> b", 'T'),
            ("'x' = 'x'", 'T'),
            ("n = '3.0'", 'F'),
            ("n = m", 'F'),
            ("n = 3.0", 'T'),
            ("m = 3", 'T'),
            ("a IN ('y', 'x', 'y')", 'T'),
            ("a IN ('X')", 'F'),
            ("a NOT IN ('X')", 'T'),
            ("n IN ('3.0')", 'F'),
        ],
    );
}

#[test]
fn two_properties_are_ordered_as_numbers() {
    assert_truths(
        &[("a", "9"), ("b", "10"), ("c", "9.0"), ("x", "y")],
        &[
            ("a < b", 'T'),
            ("b > a", 'T'),
            ("a <= c", 'T'),
            ("a < c", 'F'),
            ("a < x", '?'),
            ("x < x", '?'),
        ],
    );
}

#[test]
fn flt_4_numbers_compare_exactly_whatever_their_form() {
    assert_truths(
        &[
            ("half", "3.5"),
            ("big", "3000000000"),
            ("max", "9223372036854775807"),
            ("more", "9223372036854775808"),
            ("huge", "1e300"),
            ("over", "1e999"),
            ("odd", "9007199254740993"),
        ],
        &[
            ("half > 3", 'T'),
            ("half < 4L", 'T'),
            ("half = 3", 'F'),
            ("big > 3", 'T'),
            ("max < 9223372036854775808", 'T'),
            ("max = 9223372036854775807", 'T'),
            ("more > max", 'T'),
            ("-more = -9223372036854775808", 'T'),
            ("huge > max", 'T'),
            ("-huge < max", 'T'),
            ("over > 1", '?'),
            ("odd = 9007199254740992", 'F'),
            ("odd > 9007199254740992.0", 'T'),
        ],
    );
}

#[test]
fn signs_belong_to_numbers_and_properties() {
    assert_truths(
        &[("a", "-3"), ("t", "x")],
        &[
            ("a = -3", 'T'),
            ("-a = 3", 'T'),
            ("- -a = -3", 'T'),
            ("+a = -3", 'T'),
            ("-(a) > +2.5", 'T'),
            ("-(-(a)) = a", 'T'),
            ("+a = +a", 'T'),
            ("+a = '-3'", '?'),
            ("-t = 3", '?'),
        ],
    );
    assert_eq!(fault("-'x' = a"), (SqlFault::NoSign { found: "text" }, "'x' = a"));
    assert_eq!(fault("-TRUE"), (SqlFault::NoSign { found: "TRUE" }, "TRUE"));
    assert_eq!(fault("+(a = 1)"), (SqlFault::NoSign { found: "a condition" }, "(a = 1)"));
    assert_eq!(fault("-NULL IS NULL"), (SqlFault::NoSign { found: "NULL" }, "NULL IS NULL"));
    assert_eq!(fault("- NOT a"), (unexpected("a property, a literal or `(`", "NOT"), "NOT a"));
}

fn unexpected(expected: &'static str, found: &'static str) -> SqlFault {
    SqlFault::Unexpected { expected, found }
}

#[test]
fn flt_5_an_error_says_what_is_wrong_and_where() {
    let operand = "a property, a literal or `(`";
    let end = "an operator or the end";
    for (text, wanted, rest) in [
        ("", unexpected(operand, "the end"), ""),
        ("  -- nothing", unexpected(operand, "the end"), ""),
        ("a = ", unexpected(operand, "the end"), ""),
        ("a = = 1", unexpected(operand, "`=`"), "= 1"),
        ("a = 1 b", unexpected(end, "a property"), "b"),
        ("a = 1)", unexpected(end, "`)`"), ")"),
        ("(a = 1", unexpected("`)`", "the end"), ""),
        ("a IS 3", unexpected("NULL", "a number"), "3"),
        ("a IS NOT TRUE", unexpected("NULL", "TRUE"), "TRUE"),
        ("a BETWEEN 1 OR 2", unexpected("AND", "OR"), "OR 2"),
        ("a NOT 3", unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH", "a number"), "3"),
        (
            "a NOT NOT IN ('x')",
            unexpected("BETWEEN, IN, CONTAINS, STARTSWITH or ENDSWITH", "NOT"),
            "NOT IN ('x')",
        ),
        ("a IN 'x'", unexpected("`(`", "text"), "'x'"),
        ("a IN ()", unexpected("text", "`)`"), ")"),
        ("a IN ('x',)", unexpected("text", "`)`"), ")"),
        ("a IN ('x' 'y')", unexpected("`)`", "text"), "'y')"),
        ("a IN (1)", unexpected("text", "a number"), "1)"),
        ("a IN (b)", unexpected("text", "a property"), "b)"),
        ("a CONTAINS b", unexpected("text", "a property"), "b"),
        ("a LIKE 'x'", unexpected(end, "a property"), "LIKE 'x'"),
        ("a + 1 = 2", unexpected(end, "`+`"), "+ 1 = 2"),
        ("AND", unexpected(operand, "AND"), "AND"),
        ("a = 5x", unexpected(end, "a property"), "x"),
        ("a = 5e", unexpected(end, "a property"), "e"),
        ("a != 1", SqlFault::Character { found: '!' }, "!= 1"),
        ("a = \"x\"", SqlFault::Character { found: '"' }, "\"x\""),
        ("é = 1", SqlFault::Character { found: 'é' }, "é = 1"),
        ("aé = 1", SqlFault::Character { found: 'é' }, "é = 1"),
        ("a = .", SqlFault::Character { found: '.' }, "."),
        ("a = 'x", SqlFault::OpenText, "'x"),
        ("a = 'x''", SqlFault::OpenText, "'x''"),
        ("a /* = 1", SqlFault::OpenComment, "/* = 1"),
        ("a /*/ = 1", SqlFault::OpenComment, "/*/ = 1"),
        ("a = 007", SqlFault::LeadingZero, "007"),
        ("a = 1e999", SqlFault::NumberRange, "1e999"),
        ("'x'", SqlFault::NotACondition { found: "text" }, "'x'"),
        ("a AND 3", SqlFault::NotACondition { found: "a number" }, "3"),
        ("NOT 'x'", SqlFault::NotACondition { found: "text" }, "'x'"),
        ("-a", SqlFault::NotACondition { found: "a property with a sign" }, "-a"),
        ("'x' IN ('x')", SqlFault::NotAProperty { operator: "IN", found: "text" }, "'x' IN ('x')"),
        (
            "NOT a IN ('x')",
            SqlFault::NotAProperty { operator: "IN", found: "a condition" },
            "NOT a IN ('x')",
        ),
        (
            "3 CONTAINS 'x'",
            SqlFault::NotAProperty { operator: "CONTAINS", found: "a number" },
            "3 CONTAINS 'x'",
        ),
    ] {
        assert_eq!(fault(text), (wanted, rest), "{text}");
    }
}

#[test]
fn flt_5_an_error_reads_like_a_sentence() {
    let told = |text| Expression::parse(Language::Sql, text).unwrap_err().to_string();
    assert_eq!(told("a = = 1"), "at byte 4: expected a property, a literal or `(`, found `=`");
    assert_eq!(told("a != 1"), "at byte 2: unexpected character '!'");
    assert_eq!(
        told("a > 'x'"),
        "at byte 4: text is neither more nor less than anything; only numbers and properties are"
    );
    let told = Expression::parse(Language::Tags, "||").unwrap_err().to_string();
    assert_eq!(told, "tag expression names no tag");
}

#[test]
fn flt_5_long_text_is_refused_unread() {
    let exact = format!("a = '{}'", "x".repeat(MAX_SQL_LEN - 6));
    assert_eq!(exact.len(), 4096);
    assert_eq!(sql(&exact).to_string(), exact);
    for found in [4097, 1 << 20] {
        let text = format!("a = '{}'", "x".repeat(found - 6));
        let (fault, rest) = fault(&text);
        assert_eq!(fault, SqlFault::TooLong { limit: 4096, found });
        assert_eq!(rest.len(), found - 4096);
    }
}

#[test]
fn flt_5_deep_text_is_refused_before_it_is_followed() {
    let nested = |levels| format!("{}a{}", "(".repeat(levels), ")".repeat(levels));
    assert_eq!(sql(&nested(32)), sql("a"));
    assert_eq!(fault(&nested(33)).0, SqlFault::TooDeep { limit: 32 });
    assert_eq!(fault(&nested(33)).1.len(), 35, "at the parenthesis that is too much");
    assert_eq!(fault(&"(".repeat(4096)).0, SqlFault::TooDeep { limit: 32 });
    let (fault_of_many, _) = fault(&"(".repeat(10_000));
    assert_eq!(fault_of_many, SqlFault::TooLong { limit: 4096, found: 10_000 });
    // Words without parentheses are no levels, but where each of them holds the one before.
    assert_eq!(sql(&format!("{}a", "NOT ".repeat(1000))), sql("NOT NOT a"));
    assert_eq!(sql(&format!("a = {}1", "- ".repeat(1000))), sql("a = 1"));
    let deep = (0..32).fold("a".to_owned(), |inner, _| format!("b OR c AND NOT ({inner})"));
    let found = sql(&deep).clone().evaluate(&Properties(&[("c", "true")])).steps;
    assert_eq!(found, 32 * 5 + 1);
    let chain = |links| format!("a{}", " = a".repeat(links));
    assert!(!sql(&chain(33)).matches(&Properties(&[])));
    assert_eq!(fault(&chain(34)).0, SqlFault::TooDeep { limit: 32 });
    let chain = |links| format!("a{}", " IS NULL".repeat(links));
    assert!(!sql(&chain(32)).matches(&Properties(&[])));
    assert_eq!(fault(&chain(34)).0, SqlFault::TooDeep { limit: 32 });
}

#[test]
fn flt_5_comparisons_and_nodes_are_counted() {
    let joined = |one: &str, by: &str, count| vec![one; count].join(by);
    assert_eq!(sql(&joined("a=1", " OR ", 256)).evaluate(&Properties(&[])).steps, 257);
    assert_eq!(
        fault(&joined("a=1", " OR ", 257)),
        (SqlFault::TooManyComparisons { limit: 256 }, "a=1")
    );
    assert_eq!(
        fault(&joined("a", " AND ", 257)),
        (SqlFault::TooManyComparisons { limit: 256 }, "a")
    );
    let list = |count| format!("a IN ({})", joined("''", ",", count));
    assert_eq!(sql(&list(1022)), sql("a IN ('')"), "the property, the comparison, and the list");
    assert_eq!(fault(&list(1023)), (SqlFault::TooManyNodes { limit: 1024 }, list(1023).as_str()));
    assert_eq!(fault(&list(1024)), (SqlFault::TooManyNodes { limit: 1024 }, "'')"));
}

#[test]
fn flt_6_the_first_condition_that_decides_ends_the_work() {
    let steps = |text| sql(text).evaluate(&Properties(&[("a", "1")])).steps;
    assert_eq!(steps("a = 1"), 1);
    assert_eq!(steps("a = 1 OR a = 2 OR a = 3"), 2);
    assert_eq!(steps("a = 2 AND a = 1 AND a = 1"), 2);
    assert_eq!(steps("a = 2 OR b = 1 OR NOT a"), 5);
    assert_eq!(steps("(a = 1) = (a = 2)"), 3);
    assert_eq!(tags("a").evaluate(&Tagged(None)).steps, 1);
}

#[test]
fn flt_7_a_property_that_should_be_a_number_is_named() {
    let no_number = |text: &str| {
        sql(text)
            .evaluate(&Properties(&[("a", "x"), ("b", "y"), ("n", "1")]))
            .no_number
            .map(str::to_owned)
    };
    for (text, wanted) in [
        ("n = 1", None),
        ("a = 'x'", None),
        ("missing > 1", None),
        ("a = 1", Some("a")),
        ("n = 1 OR a = 1", None),
        ("b < 1 OR a < 1 OR n = 1", Some("b")),
        ("n BETWEEN 0 AND b", Some("b")),
        ("-a IS NULL", Some("a")),
    ] {
        assert_eq!(no_number(text).as_deref(), wanted, "{text}");
    }
    assert!(
        sql("b < 1 OR n = 1").matches(&Properties(&[("b", "y"), ("n", "1")])),
        "it still matches"
    );
}

#[test]
fn a_stored_message_shows_its_properties_and_those_of_the_protocol() {
    let mut batch = BatchBuilder::new();
    let meta = NewMeta {
        keys: vec!["k1", "k2"],
        tag: Some("t"),
        properties: vec![
            ("color", "red"),
            ("TAGS", "not this one"),
            ("color", "blue"),
            ("size", "3"),
        ],
        message_group: Some("g"),
        id: Some("i"),
        born_ms: 17,
        born_host: Some("h"),
        ..NewMeta::default()
    };
    batch.push(&meta, b"");
    batch.push(&NewMeta { keys: vec!["k"], ..NewMeta::default() }, b"");
    let bytes = batch.finish();
    let batch = Batch::parse(&bytes).unwrap();
    let metas: Vec<_> = batch.metas().map(Result::unwrap).collect();
    for (condition, wanted) in [
        ("TAGS = 't'", [true, false]),
        ("TAGS IS NULL", [false, true]),
        ("KEYS = 'k1 k2'", [true, false]),
        ("KEYS = 'k'", [false, true]),
        ("UNIQ_KEY = 'i'", [true, false]),
        ("__SHARDINGKEY = 'g'", [true, false]),
        ("BORN_TIMESTAMP BETWEEN 17 AND 17", [true, false]),
        ("BORN_TIMESTAMP IS NULL", [false, true]),
        ("__BORNHOST = 'h'", [true, false]),
        ("TRACE_CONTEXT IS NULL", [true, true]),
        ("color = 'blue' AND size > 2", [true, false]),
        ("color IS NULL", [false, true]),
    ] {
        let found: Vec<_> = metas.iter().map(|meta| sql(condition).matches(meta)).collect();
        assert_eq!(found, wanted, "{condition}");
    }
    assert_eq!(metas.iter().map(|meta| tags("t").matches(meta)).collect::<Vec<_>>(), [true, false]);
    for name in ["TAGS", "UNIQ_KEY", "color"] {
        let found = Subject::property(&metas[0], name);
        assert!(matches!(found, Some(Cow::Borrowed(_))), "{name} was copied: {found:?}");
    }
    assert!(matches!(metas[1].property("KEYS"), Some(Cow::Borrowed("k"))), "one key is not copied");
}

/// A condition of the model: made at random, written as text with as few parentheses as it needs, and evaluated as
/// plainly as can be.
#[derive(Clone, Debug)]
enum Model {
    Constant(Option<bool>),
    Bare(&'static str),
    Not(Box<Model>),
    And(Box<Model>, Box<Model>),
    Or(Box<Model>, Box<Model>),
    Equal(Side, &'static str, Side),
    Order(Side, &'static str, Side),
    Between(Side, bool, Side, Side),
    In(&'static str, bool, Vec<&'static str>),
    Find(Side, bool, &'static str, &'static str),
    IsNull(Side, bool),
}

/// One side of a comparison.
#[derive(Clone, Debug)]
enum Side {
    Property(&'static str),
    Signed(bool, &'static str),
    /// In thousandths.
    Number(i64),
    Text(&'static str),
    Condition(Box<Model>),
}

/// What a side comes to. Properties are told from other text: they take another one's type.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Found {
    Nothing,
    Property(&'static str),
    Text(&'static str),
    Number(i64),
    Truth(bool),
}

const NAMES: [&str; 4] = ["a", "b", "$c", "D_1"];
const FINDERS: [&str; 3] = ["CONTAINS", "STARTSWITH", "ENDSWITH"];

/// Texts of properties, and which number each is, in thousandths.
const TEXTS: [(&str, Option<i64>); 16] = [
    ("", None),
    ("x", None),
    ("xy", None),
    ("yx", None),
    ("it's", None),
    ("true", None),
    ("FALSE", None),
    ("0", Some(0)),
    ("1", Some(1000)),
    ("1.0", Some(1000)),
    ("+1.5", Some(1500)),
    ("-1", Some(-1000)),
    ("15e-1", Some(1500)),
    ("-0.001", Some(-1)),
    ("9007199254740.993", Some(9_007_199_254_740_993)),
    ("1 ", None),
];

/// Whether each of [`NAMES`] is there, and as what.
type World = [Option<&'static str>; 4];

impl Model {
    fn truth(&self, world: &World) -> Option<bool> {
        let get = |name: &str| NAMES.iter().position(|it| *it == name).and_then(|at| world[at]);
        match self {
            Self::Constant(truth) => *truth,
            Self::Bare(name) => get(name).map(|text| text.to_lowercase() == "true"),
            Self::Not(inner) => inner.truth(world).map(|truth| !truth),
            Self::And(a, b) => match (a.truth(world), b.truth(world)) {
                (Some(true), Some(true)) => Some(true),
                (Some(false), _) | (_, Some(false)) => Some(false),
                _ => None,
            },
            Self::Or(a, b) => match (a.truth(world), b.truth(world)) {
                (Some(false), Some(false)) => Some(false),
                (Some(true), _) | (_, Some(true)) => Some(true),
                _ => None,
            },
            Self::Equal(a, operator, b) => {
                let is_equal = equal(a.found(world), b.found(world))?;
                Some(is_equal == (*operator == "="))
            }
            Self::Order(a, operator, b) => {
                let order = a.found(world).number()?.cmp(&b.found(world).number()?);
                Some(match *operator {
                    "<" => order == Ordering::Less,
                    "<=" => order != Ordering::Greater,
                    ">" => order == Ordering::Greater,
                    _ => order != Ordering::Less,
                })
            }
            Self::Between(value, is_negated, low, high) => {
                let number = |side: &Side| side.found(world).number();
                let (value, low, high) = (number(value)?, number(low)?, number(high)?);
                Some((low..=high).contains(&value) != *is_negated)
            }
            Self::In(name, is_negated, texts) => {
                get(name).map(|text| texts.contains(&text) != *is_negated)
            }
            Self::Find(side, is_negated, finder, wanted) => match side.found(world) {
                Found::Property(text) | Found::Text(text) if !wanted.is_empty() => {
                    let is_there = match *finder {
                        "CONTAINS" => text.contains(wanted),
                        "STARTSWITH" => text.starts_with(wanted),
                        _ => text.ends_with(wanted),
                    };
                    Some(is_there != *is_negated)
                }
                _ => Some(false),
            },
            Self::IsNull(side, is_negated) => {
                Some((side.found(world) == Found::Nothing) != *is_negated)
            }
        }
    }

    /// Its level in the table of the room, from weak to strong.
    fn level(&self) -> u8 {
        match self {
            Self::Or(..) => 1,
            Self::And(..) => 2,
            Self::Equal(..) | Self::IsNull(..) => 3,
            Self::Order(..) | Self::Between(..) | Self::In(..) | Self::Find(..) => 4,
            Self::Not(_) => 5,
            Self::Constant(_) | Self::Bare(_) => 6,
        }
    }

    /// As text, where only what binds at least as strong as `level` needs no parentheses.
    fn text(&self, level: u8) -> String {
        let not = |is_negated: &bool| if *is_negated { "not " } else { "" };
        let text = match self {
            Self::Constant(Some(true)) => "TRUE".to_owned(),
            Self::Constant(Some(false)) => "False".to_owned(),
            Self::Constant(None) => "null".to_owned(),
            Self::Bare(name) => (*name).to_owned(),
            Self::Not(inner) => format!("NOT {}", inner.text(5)),
            Self::And(a, b) => format!("{} AND {}", a.text(2), b.text(3)),
            Self::Or(a, b) => format!("{} or {}", a.text(1), b.text(2)),
            Self::Equal(a, operator, b) => format!("{}{operator}{}", a.text(3), b.text(4)),
            Self::Order(a, operator, b) => format!("{} {operator}{}", a.text(5), b.text(5)),
            Self::Between(value, is_negated, low, high) => {
                let (value, low, high) = (value.text(5), low.text(5), high.text(5));
                format!("{value} {}between {low} and {high}", not(is_negated))
            }
            Self::In(name, is_negated, texts) => {
                let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
                format!("{name} {}IN ({})", not(is_negated), texts.join(" , "))
            }
            Self::Find(side, is_negated, finder, wanted) => {
                format!("{} {}{finder}{}", side.text(5), not(is_negated), quoted(wanted))
            }
            Self::IsNull(side, is_negated) => {
                format!("{} IS {}NULL", side.text(3), not(is_negated))
            }
        };
        if self.level() < level { format!("({text})") } else { text }
    }
}

impl Side {
    fn found(&self, world: &World) -> Found {
        let get = |name: &str| NAMES.iter().position(|it| *it == name).and_then(|at| world[at]);
        match self {
            Self::Property(name) => get(name).map_or(Found::Nothing, Found::Property),
            Self::Signed(is_negative, name) => {
                let number = get(name).and_then(|text| Found::Property(text).number());
                let sign = if *is_negative { -1 } else { 1 };
                number.map_or(Found::Nothing, |number| Found::Number(sign * number))
            }
            Self::Number(number) => Found::Number(*number),
            Self::Text(text) => Found::Text(text),
            Self::Condition(condition) => {
                condition.truth(world).map_or(Found::Nothing, Found::Truth)
            }
        }
    }

    fn text(&self, level: u8) -> String {
        match self {
            Self::Property(name) => (*name).to_owned(),
            Self::Signed(is_negative, name) => {
                format!(" {} {name}", if *is_negative { '-' } else { '+' })
            }
            Self::Number(number) if number % 1000 == 0 => format!(" {} ", number / 1000),
            Self::Number(number) => {
                let sign = if *number < 0 { "-" } else { "" };
                format!(" {sign}{}.{:03}", number.abs() / 1000, number.abs() % 1000)
            }
            Self::Text(text) => quoted(text),
            Self::Condition(condition) => condition.text(level),
        }
    }
}

impl Found {
    fn number(self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Property(text) => TEXTS.iter().find(|(one, _)| *one == text)?.1,
            Self::Nothing | Self::Text(_) | Self::Truth(_) => None,
        }
    }
}

fn equal(a: Found, b: Found) -> Option<bool> {
    use Found::{Number, Property, Text, Truth};
    match (a, b) {
        (Property(a) | Text(a), Property(b) | Text(b)) => Some(a == b),
        (Number(_), Number(_) | Property(_)) | (Property(_), Number(_)) => {
            Some(a.number()? == b.number()?)
        }
        (Truth(a), Truth(b)) => Some(a == b),
        (Truth(truth), Property(text)) | (Property(text), Truth(truth)) => {
            Some((text.to_lowercase() == "true") == truth)
        }
        _ => None,
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn a_text() -> impl Strategy<Value = &'static str> {
    prop::sample::select(TEXTS.to_vec()).prop_map(|(text, _)| text)
}

/// A side that is a number, or may be one.
fn numeric() -> impl Strategy<Value = Side> {
    let name = prop::sample::select(NAMES.to_vec());
    let thousandths = vec![0, 1000, 1500, -1000, -1, 500, 9_007_199_254_740_993];
    prop_oneof![
        3 => name.clone().prop_map(Side::Property),
        1 => (any::<bool>(), name).prop_map(|(is_negative, name)| Side::Signed(is_negative, name)),
        2 => prop::sample::select(thousandths).prop_map(Side::Number),
    ]
}

fn model() -> impl Strategy<Value = Model> {
    let name = || prop::sample::select(NAMES.to_vec());
    let orders = vec!["<", "<=", ">", ">="];
    let texts = prop::collection::vec(a_text(), 1..4);
    let text_side = prop_oneof![name().prop_map(Side::Property), a_text().prop_map(Side::Text)];
    let leaf = prop_oneof![
        1 => prop::sample::select(vec![Some(true), Some(false), None]).prop_map(Model::Constant),
        2 => name().prop_map(Model::Bare),
        3 => (numeric(), prop::sample::select(orders), numeric())
            .prop_map(|(a, operator, b)| Model::Order(a, operator, b)),
        2 => (numeric(), any::<bool>(), numeric(), numeric()).prop_map(
            |(value, is_negated, low, high)| match (&low, &high) {
                // Literal bounds in the wrong order are refused.
                (Side::Number(a), Side::Number(b)) if a > b => {
                    Model::Between(value, is_negated, high, low)
                }
                _ => Model::Between(value, is_negated, low, high),
            }
        ),
        2 => (name(), any::<bool>(), texts)
            .prop_map(|(name, is_negated, texts)| Model::In(name, is_negated, texts)),
        2 => (text_side, any::<bool>(), prop::sample::select(FINDERS.to_vec()), a_text()).prop_map(
            |(side, is_negated, finder, wanted)| Model::Find(side, is_negated, finder, wanted)
        ),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let side = prop_oneof![
            3 => numeric(),
            2 => a_text().prop_map(Side::Text),
            2 => inner.clone().prop_map(|inner| match inner {
                // No conditions, but a property and a literal that cannot be compared.
                Model::Bare(name) => Side::Property(name),
                Model::Constant(None) => Side::Number(0),
                inner => Side::Condition(Box::new(inner)),
            }),
        ];
        let two = (inner.clone().prop_map(Box::new), inner.clone().prop_map(Box::new));
        prop_oneof![
            2 => inner.prop_map(|inner| Model::Not(Box::new(inner))),
            3 => two.clone().prop_map(|(a, b)| Model::And(a, b)),
            3 => two.prop_map(|(a, b)| Model::Or(a, b)),
            3 => (side.clone(), prop::sample::select(vec!["=", "<>"]), side.clone())
                .prop_map(|(a, operator, b)| Model::Equal(a, operator, b)),
            1 => (side, any::<bool>())
                .prop_map(|(side, is_negated)| Model::IsNull(side, is_negated)),
        ]
    })
}

/// Text that looks like a condition, and often is none.
fn scraps() -> impl Strategy<Value = String> {
    let scraps = [
        "a",
        "$b",
        "TAGS",
        " AND ",
        " OR ",
        " NOT ",
        " IS ",
        " NULL ",
        " BETWEEN ",
        " IN ",
        "TRUE",
        " CONTAINS ",
        " ENDSWITH ",
        "(",
        ")",
        ",",
        "+",
        "-",
        "=",
        "<>",
        "<",
        "<=",
        ">",
        ">=",
        "'",
        "'x'",
        "''",
        "0",
        "12",
        "3.5",
        ".",
        "1e9",
        "1e",
        "9L",
        "/*",
        "*/",
        "--",
        "\n",
        " ",
        "é",
        "!",
    ];
    prop::collection::vec(prop::sample::select(scraps.to_vec()), 0..40).prop_map(|all| all.concat())
}

proptest! {
    #[test]
    fn a_condition_says_what_its_naive_evaluation_says(
        model in model(),
        worlds in prop::collection::vec(prop::array::uniform4(prop::option::weighted(0.8, a_text())), 8),
    ) {
        let text = model.text(0);
        let filter = Expression::parse(Language::Sql, &text);
        let filter = filter.unwrap_or_else(|error| panic!("{text}: {error}"));
        let is_null = sql(&format!("({text}) IS NULL"));
        for world in &worlds {
            let there = NAMES.into_iter().zip(world).filter_map(|(name, text)| Some((name, (*text)?)));
            let properties: Vec<_> = there.collect();
            let message = Properties(&properties);
            let wanted = model.truth(world);
            let verdict = filter.evaluate(&message);
            prop_assert_eq!(verdict.is_match, wanted == Some(true), "{} of {:?}", text, properties);
            prop_assert_eq!(is_null.matches(&message), wanted.is_none(), "{} of {:?}", text, properties);
            prop_assert!(verdict.steps >= 1 && verdict.steps as usize <= MAX_NODES);
        }
    }

    #[test]
    fn any_text_is_a_condition_or_an_error_at_a_place_in_it(
        text in prop_oneof![3 => scraps(), 1 => any::<String>()],
        values in prop::array::uniform4(prop::option::of(any::<String>())),
    ) {
        match Expression::parse(Language::Sql, &text) {
            Err(FilterError::Sql(SqlError { at, .. })) => {
                prop_assert!(text.is_char_boundary(at), "{at} is no place in {text:?}");
            }
            Err(FilterError::Tags(error)) => prop_assert!(false, "{error}"),
            Ok(filter) => {
                let there = NAMES.into_iter().zip(&values);
                let there = there.filter_map(|(name, text)| Some((name, text.as_deref()?)));
                let properties: Vec<_> = there.collect();
                let verdict = filter.evaluate(&Properties(&properties));
                prop_assert_eq!(verdict, filter.evaluate(&Properties(&properties)));
                prop_assert!(verdict.steps as usize <= MAX_NODES);
                let again = Expression::parse(Language::Sql, &filter.to_string());
                prop_assert_eq!(again, Ok(filter.clone()));
            }
        }
        if let Ok(filter) = Expression::parse(Language::Tags, &text) {
            let again = Expression::parse(Language::Tags, &filter.to_string());
            prop_assert_eq!(again, Ok(filter));
        }
    }
}
