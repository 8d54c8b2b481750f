//! What a request needs to be allowed, from its method and route alone.

use ash_core::ports::{AccessResource, Verb};
use http::Method;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needed {
    /// All of these.
    pub(crate) verbs: &'static [Verb],
    pub(crate) resource: AccessResource,
    /// Whether in a namespace; in the whole cluster otherwise.
    pub(crate) namespaced: bool,
}

/// What a request needs; `None` for one that nobody with a token may make. The route is the router's template.
pub(crate) fn needed(method: &Method, route: &str) -> Option<Needed> {
    let mut parts = route.strip_prefix("/api/")?.split('/');
    let (resource, namespaced) = match parts.next()? {
        "agents" => (AccessResource::Agents, true),
        "sessions" => (AccessResource::Sessions, true),
        "credentials" => (AccessResource::Credentials, true),
        "runners" => (AccessResource::Runners, false),
        _ => return None,
    };
    let one = parts.next().is_some();
    let within_one = parts.next().is_some();
    let verbs: &[Verb] = match (method, one, resource) {
        (&Method::GET | &Method::HEAD, false, _) => &[Verb::List],
        (&Method::GET | &Method::HEAD, true, _) => &[Verb::Get],
        // A deployment makes an agent or the next version of one that is there.
        (&Method::POST, false, AccessResource::Agents) => &[Verb::Create, Verb::Update],
        (&Method::POST, false, _) => &[Verb::Create],
        (&Method::POST | &Method::PUT | &Method::PATCH, true, _) => &[Verb::Update],
        // What is taken out of one changes it.
        (&Method::DELETE, true, _) if within_one => &[Verb::Update],
        (&Method::DELETE, true, _) => &[Verb::Delete],
        _ => return None,
    };
    Some(Needed { verbs, resource, namespaced })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::ports::{
        AccessResource::{Agents, Credentials, Runners, Sessions},
        Verb::{self, Create, Delete, Get, List, Update},
    };
    use http::Method;
    use proptest::prelude::*;

    use super::needed;

    /// The routes under `/api` with their methods, as the router's source has them: each on one line.
    fn routes() -> Vec<(String, &'static str)> {
        let lines = include_str!("../lib.rs").lines().filter_map(|line| line.trim().strip_prefix(".route(\"/api/"));
        let mut found = Vec::new();
        for line in lines {
            let (route, handlers) = line.split_once("\", ").unwrap();
            let route: &'static str = format!("/api/{route}").leak();
            for method in ["get", "post", "put", "patch", "delete"] {
                if [" ", "."].iter().any(|before| format!(" {handlers}").contains(&format!("{before}{method}("))) {
                    found.push((method.to_uppercase(), route));
                }
            }
        }
        assert!(found.len() >= 22, "{found:?}");
        found
    }

    #[test]
    fn every_route_has_its_verb() {
        let table: &[(&str, &str, ash_core::ports::AccessResource, &[Verb])] = &[
            ("GET", "/api/agents", Agents, &[List]),
            ("POST", "/api/agents", Agents, &[Create, Update]),
            ("GET", "/api/agents/{name}", Agents, &[Get]),
            ("DELETE", "/api/agents/{name}", Agents, &[Delete]),
            ("GET", "/api/sessions", Sessions, &[List]),
            ("POST", "/api/sessions", Sessions, &[Create]),
            ("GET", "/api/sessions/{id}", Sessions, &[Get]),
            ("HEAD", "/api/sessions/{id}", Sessions, &[Get]),
            ("DELETE", "/api/sessions/{id}", Sessions, &[Delete]),
            ("POST", "/api/sessions/{id}/messages", Sessions, &[Update]),
            ("GET", "/api/sessions/{id}/messages", Sessions, &[Get]),
            ("GET", "/api/sessions/{id}/events", Sessions, &[Get]),
            ("GET", "/api/sessions/{id}/stream", Sessions, &[Get]),
            ("PATCH", "/api/sessions/{id}/config", Sessions, &[Update]),
            ("GET", "/api/sessions/{id}/queue", Sessions, &[Get]),
            ("DELETE", "/api/sessions/{id}/queue/{entry}", Sessions, &[Update]),
            ("POST", "/api/sessions/{id}/interrupt", Sessions, &[Update]),
            ("POST", "/api/sessions/{id}/pause", Sessions, &[Update]),
            ("POST", "/api/sessions/{id}/resume", Sessions, &[Update]),
            ("POST", "/api/sessions/{id}/stop", Sessions, &[Update]),
            ("POST", "/api/sessions/{id}/permissions/{request}", Sessions, &[Update]),
            ("POST", "/api/credentials", Credentials, &[Create]),
            ("GET", "/api/credentials", Credentials, &[List]),
            ("DELETE", "/api/credentials/{id}", Credentials, &[Delete]),
            ("GET", "/api/runners", Runners, &[List]),
            ("POST", "/api/runners/{name}/cordon", Runners, &[Update]),
            ("POST", "/api/runners/{name}/uncordon", Runners, &[Update]),
        ];
        for (method, route) in routes() {
            assert!(table.iter().any(|row| (row.0, row.1) == (method.as_str(), route)), "{method} {route} is not here");
        }
        for (method, route, resource, verbs) in table {
            let found = needed(&method.parse().unwrap(), route).unwrap();
            assert_eq!((found.resource, found.verbs), (*resource, *verbs), "{method} {route}");
            assert_eq!(found.namespaced, *resource != Runners);
        }
        for (method, route) in
            [("DELETE", "/api/sessions"), ("OPTIONS", "/api/agents"), ("GET", "/health"), ("GET", "/api/x")]
        {
            assert_eq!(needed(&method.parse().unwrap(), route), None, "{method} {route}");
        }
    }

    proptest! {
        /// Reading never suffices to change something, whatever routes there will be.
        #[test]
        fn what_changes_needs_more_than_reading(method in "POST|PUT|PATCH|DELETE|GET|HEAD|TRACE", route in "/api/(agents|sessions|credentials|runners|x)(/[a-z{}]{1,8}){0,4}") {
            let method: Method = method.parse().unwrap();
            if let Some(found) = needed(&method, &route) {
                let reads = found.verbs.iter().all(|verb| matches!(verb, Get | List));
                prop_assert!(!found.verbs.is_empty());
                prop_assert_eq!(reads, method == Method::GET || method == Method::HEAD);
            }
        }
    }
}
