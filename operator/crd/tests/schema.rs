//! What must hold in every schema, whatever field is added.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use serde_json::{Map, Value};

/// The fields where anything may stand.
const FREE: &[&str] = &[
    "agents.spec.config",
    "sessions.spec.message.outputFormat.schema",
    "sessions.spec.options.mcpServers.*",
    "sessions.spec.options.subagents.*",
];

/// The formats that the API server knows and checks.
const FORMATS: &[&str] = &["int32", "int64", "double", "date-time", "byte"];

/// Every schema of both definitions, with the path of its field.
fn schemas() -> Vec<(String, Map<String, Value>)> {
    let mut found = Vec::new();
    for definition in ash_crd::definitions() {
        let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        walk(&definition.spec.names.plural, &serde_json::to_value(schema).unwrap(), &mut found);
    }
    found
}

fn walk(path: &str, schema: &Value, found: &mut Vec<(String, Map<String, Value>)>) {
    let schema = schema.as_object().unwrap();
    found.push((path.to_owned(), schema.clone()));
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, found);
    }
    if let Some(items) = schema.get("items") {
        walk(&format!("{path}[]"), items, found);
    }
    if let Some(values) = schema.get("additionalProperties") {
        walk(&format!("{path}.*"), values, found);
    }
}

#[test]
fn every_schema_is_structural() {
    for (path, schema) in schemas() {
        let typed = schema.contains_key("type") || schema.contains_key("x-kubernetes-int-or-string");
        assert!(typed, "{path} has no type");
        for word in ["oneOf", "anyOf", "allOf", "not", "$ref", "nullable", "uniqueItems", "const"] {
            assert!(!schema.contains_key(word), "{path} has {word}");
        }
    }
}

#[test]
fn only_free_fields_keep_what_is_unknown() {
    let mut free = Vec::new();
    for (path, schema) in schemas() {
        if schema.contains_key("x-kubernetes-preserve-unknown-fields") {
            free.push(path);
        } else if schema.get("type").is_some_and(|kind| kind == "object") {
            let closed = schema.contains_key("properties") || schema.contains_key("additionalProperties");
            assert!(closed, "{path} says nothing of its fields");
        }
    }
    assert_eq!(free, FREE);
}

#[test]
fn every_field_has_a_description_and_bounds() {
    for (path, schema) in schemas() {
        let is_field = !path.ends_with(['*', ']']);
        let described = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        if is_field && path.matches('.').count() > 1 {
            assert!(described.ends_with('.'), "{path} has no description: {described:?}");
            assert!(!described.contains('\n'), "{path} breaks lines: {described:?}");
        }
        let bound = match schema.get("type").and_then(Value::as_str) {
            Some("string") => schema.contains_key("maxLength") || schema.contains_key("enum"),
            Some("array") => schema.contains_key("maxItems") && schema.contains_key("x-kubernetes-list-type"),
            Some("object") => !schema.contains_key("additionalProperties") || schema.contains_key("maxProperties"),
            _ => true,
        };
        assert!(bound, "{path} has no bound");
        if let Some(format) = schema.get("format").and_then(Value::as_str) {
            assert!(FORMATS.contains(&format), "{path} has the format {format}");
        }
    }
}

#[test]
fn every_rule_tells_the_person_what_to_do() {
    let mut rules = 0;
    for (path, schema) in schemas() {
        for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.split_whitespace().count() > 5 && !message.contains('\n'), "{path}: {rule}");
            rules += 1;
        }
    }
    assert!(rules > 50, "{rules}");
}

#[test]
fn every_path_of_a_definition_leads_to_a_field() {
    let known: Vec<String> = schemas().into_iter().map(|(path, _)| path).collect();
    for definition in ash_crd::definitions() {
        let version = &definition.spec.versions[0];
        let columns = version.additional_printer_columns.iter().flatten().map(|column| column.json_path.clone());
        let selectable = version.selectable_fields.iter().flatten().map(|field| field.json_path.clone());
        let scale = version.subresources.as_ref().and_then(|sub| sub.scale.as_ref()).into_iter();
        let scale = scale.flat_map(|scale| {
            let selector = scale.label_selector_path.clone();
            [Some(scale.spec_replicas_path.clone()), Some(scale.status_replicas_path.clone()), selector]
        });
        for path in columns.chain(selectable).chain(scale.flatten()) {
            let path = path.replace(r#"[?(@.type=="Ready")]"#, "[]");
            let full = format!("{}{path}", definition.spec.names.plural);
            assert!(known.contains(&full) || path == ".metadata.creationTimestamp", "{full} is no field");
        }
        assert!(version.selectable_fields.as_ref().unwrap().len() <= 8, "the API server takes 8 selectable fields");
        assert!(version.subresources.as_ref().unwrap().status.is_some());
        assert_eq!(definition.spec.names.categories.as_deref(), Some(&["ash".to_owned()][..]));
    }
}

#[test]
fn generated_files_are_fresh() {
    let stale = ash_crd::generated::stale(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap();
    assert!(stale.is_empty(), "run `make generate` and commit: {stale:?}");
}
