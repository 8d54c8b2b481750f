//! JSON schemas of every kind that the chart renders, made from what Kubernetes and the definitions themselves publish, and strict:
//! a field that is not in them is an error.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Map, Value, json};

use crate::tools::{Tools, objects, top};

/// Where Kubernetes' own types refer to each other.
const DEFINITIONS: &str = "#/definitions/";

/// Writes the schemas of all kinds into `folder`, named `KIND_GROUP_VERSION.json` in lower case.
pub(crate) fn write(tools: &Tools, folder: &Path) {
    let text = fs::read_to_string(tools.schemas.join("swagger.json")).unwrap();
    let swagger: Value = serde_json::from_str(&text).unwrap();
    let definitions = swagger["definitions"].as_object().unwrap();
    let types: Map<String, Value> = definitions.iter().map(|(name, schema)| (name.clone(), strict(schema))).collect();
    for (name, definition) in definitions {
        for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let schema = json!({ "$ref": format!("{DEFINITIONS}{name}"), "definitions": used(&types, name) });
            save(folder, kind, &schema);
        }
    }
    let of_others = tools.schemas.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let ours = top().join("crds").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let texts = of_others.chain(ours).filter(|path| path.extension().is_some_and(|end| end == "yaml"));
    for object in texts.flat_map(|path| objects(&fs::read_to_string(path).unwrap())) {
        if object["kind"] != "CustomResourceDefinition" {
            continue;
        }
        for version in object["spec"]["versions"].as_array().unwrap() {
            let mut schema = strict(&version["schema"]["openAPIV3Schema"]);
            let metadata = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
            // Every object has them, whether its definition says so or not.
            schema["properties"]["apiVersion"] = json!({ "type": "string" });
            schema["properties"]["kind"] = json!({ "type": "string" });
            schema["properties"]["metadata"] = json!({ "$ref": format!("{DEFINITIONS}{metadata}") });
            schema["definitions"] = used(&types, metadata).into_iter().collect::<Map<_, _>>().into();
            let spec = &object["spec"];
            let kind = json!({ "group": spec["group"], "version": version["name"], "kind": spec["names"]["kind"] });
            save(folder, &kind, &schema);
        }
    }
}

fn save(folder: &Path, kind: &Value, schema: &Value) {
    let part = |name: &str| kind[name].as_str().unwrap_or_default().to_lowercase();
    // What kubeconform calls the group is all of apiVersion before a slash: for the core group, its version.
    let group = if part("group").is_empty() { part("version") } else { part("group") };
    let name = format!("{}_{group}_{}.json", part("kind"), part("version"));
    fs::write(folder.join(name), schema.to_string()).unwrap();
}

/// The types that one refers to, directly or through others, and itself.
fn used(types: &Map<String, Value>, name: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut open = vec![name.to_owned()];
    while let Some(name) = open.pop() {
        if found.contains_key(&name) {
            continue;
        }
        references(&types[&name], &mut open);
        found.insert(name.clone(), types[&name].clone());
    }
    found
}

fn references(schema: &Value, open: &mut Vec<String>) {
    match schema {
        Value::Object(fields) => {
            open.extend(
                fields
                    .get("$ref")
                    .and_then(Value::as_str)
                    .and_then(|to| to.strip_prefix(DEFINITIONS))
                    .map(str::to_owned),
            );
            fields.values().for_each(|value| references(value, open));
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, open)),
        _ => {}
    }
}

/// A schema in which an object has no other fields than those that are named, and in which the words of Kubernetes that JSON
/// Schema does not know are said in its own.
fn strict(schema: &Value) -> Value {
    closed(schema, true)
}

/// `close` is not set for what has to hold beside the rest of a schema, and names only a part of the fields.
fn closed(schema: &Value, close: bool) -> Value {
    let Value::Object(fields) = schema else {
        return match schema {
            Value::Array(values) => values.iter().map(|value| closed(value, close)).collect(),
            other => other.clone(),
        };
    };
    let format = fields.get("format").and_then(Value::as_str);
    if format == Some("int-or-string") || fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        return json!({ "type": ["integer", "string"] });
    }
    if fields
        .get("description")
        .and_then(Value::as_str)
        .is_some_and(|text| text.starts_with("Quantity is a fixed-point"))
    {
        return json!({ "type": ["number", "string"] });
    }
    let mut strict_fields: Map<String, Value> = Map::new();
    for (name, value) in fields {
        match name.as_str() {
            // Names of fields, not words of the schema.
            "properties" => {
                let inner = value.as_object().unwrap().iter().map(|(name, value)| (name.clone(), closed(value, close)));
                strict_fields.insert(name.clone(), inner.collect::<Map<_, _>>().into());
            }
            // Another one's words about texts; CEL is tried on a real API server.
            "format" | "description" | "default" | "example" => {}
            name if name.starts_with("x-kubernetes-") => {}
            "allOf" | "anyOf" | "oneOf" | "not" => {
                strict_fields.insert(name.clone(), closed(value, false));
            }
            _ => {
                strict_fields.insert(name.clone(), closed(value, close));
            }
        }
    }
    let open = fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if close && fields.contains_key("properties") && !fields.contains_key("additionalProperties") && !open {
        strict_fields.insert("additionalProperties".to_owned(), false.into());
    }
    strict_fields.into()
}
