//! Pieces of schemas: rules, types that schemars does not know, and the last touch that makes a definition one that the API
//! server takes without a warning.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, ValidationRule,
};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A CEL rule and what the person is told who breaks it.
pub(crate) fn rule(rule: &str, message: &str) -> Value {
    json!({ "rule": rule, "message": message })
}

/// A rule for a relative path inside of a bundle.
pub(crate) fn path_rule() -> Value {
    rule(
        r"self.matches('^[^/\\\\]+(/[^/\\\\]+)*$') && !self.matches('(^|/)[.][.]?(/|$)')",
        "this is no path for a file of an agent: use a relative path without '.', '..' or '\\', such as .claude/settings.json",
    )
}

/// A rule for the name of another object of the namespace.
pub(crate) fn object_name_rule() -> Value {
    rule(
        "self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')",
        "this is no name of an object: use lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit",
    )
}

/// A rule that a text stays on one line and is not empty.
pub(crate) fn one_line_rule() -> Value {
    rule(
        r"self.matches('^[^\\n\\r\\t]*[^\\n\\r\\t ][^\\n\\r\\t]*$')",
        "this has to be a text on one line that is not empty",
    )
}

/// A rule for the money that a turn may cost. `minimum` would not do: the API server rounds it for whole numbers, and lets 0 pass.
pub(crate) fn budget_rule() -> Value {
    rule(
        "self >= 0.01 && self <= 100000.0",
        "a turn may cost from 0.01 to 100000 US dollars: set maxBudgetUsd between them",
    )
}

/// A rule for a length of time between two bounds.
pub(crate) fn duration_rule(least: &str, most: &str) -> Value {
    rule(
        &format!(
            "self.matches('^([0-9]{{1,6}}(h|m|s)){{1,3}}$') && duration(self) >= duration('{least}') && duration(self) <= \
             duration('{most}')"
        ),
        &format!("use a length of time from {least} to {most}, such as 90s, 15m or 1h30m"),
    )
}

/// A map from texts to texts.
pub(crate) fn texts(max_properties: u32, max_length: u32) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": max_properties,
        "additionalProperties": { "type": "string", "maxLength": max_length },
    })
}

/// Any JSON object, kept as it is.
pub(crate) fn any_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// Any JSON objects by name, kept as they are.
pub(crate) fn any_objects(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

/// Conditions as `metav1.Condition` bounds them.
pub(crate) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the resource's state.",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "maxLength": 64,
                    "description": "When the status of this condition last changed.",
                },
                "message": {
                    "type": "string",
                    "maxLength": 32768,
                    "description": "What happened and what the reader can do, in a sentence.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "The metadata.generation that this condition is about.",
                },
                "reason": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                    "description": "Why, in one word. docs/conditions.md has every reason, what it means and what to do.",
                },
                "status": {
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                    "description": "Whether it is so.",
                },
                "type": {
                    "type": "string",
                    "maxLength": 316,
                    "pattern": "^[A-Za-z0-9][-A-Za-z0-9_./]*$",
                    "description": "What the condition is about.",
                },
            },
        },
    })
}

/// A time as Kubernetes writes it.
pub(crate) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time", "maxLength": 64 })
}

/// Makes a definition that kube wrote ready for the API server: rules for the whole object, formats that it knows, and no
/// `nullable`, since an empty field is an error of the person and never a wish.
pub(crate) fn finish(mut definition: CustomResourceDefinition, rules: &[(&str, &str)]) -> CustomResourceDefinition {
    let labels = [("app.kubernetes.io/name", "ash"), ("app.kubernetes.io/component", "crds")];
    definition.metadata.labels =
        Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect());
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            tidy(schema);
            schema.x_kubernetes_validations = Some(
                rules
                    .iter()
                    .map(|(rule, message)| ValidationRule {
                        rule: (*rule).to_owned(),
                        message: Some((*message).to_owned()),
                        ..ValidationRule::default()
                    })
                    .collect(),
            );
        }
    }
    definition
}

fn tidy(schema: &mut JSONSchemaProps) {
    schema.nullable = None;
    schema.format = match schema.format.take().as_deref() {
        // The API server knows no unsigned formats and would warn; bounds say the rest.
        Some("uint8" | "uint16" | "int32") => Some("int32".to_owned()),
        Some("uint32" | "uint64" | "int64") => Some("int64".to_owned()),
        other => other.map(ToOwned::to_owned),
    };
    // Doc comments break lines for the reader of the code.
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<String> = description.split("\n\n").map(|part| part.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    let properties = schema.properties.iter_mut().flat_map(|properties| properties.values_mut());
    properties.for_each(tidy);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => tidy(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(tidy),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        tidy(values);
    }
}
